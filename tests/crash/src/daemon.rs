//! The daemon under test: its pool, its configuration, its process.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::v1::GetServerInfoRequest;
use proto::v1::stats_service_client::StatsServiceClient;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::rpc;

/// How long the daemon may take from its start to its first answer, recovery included.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked in that time.
const START_POLL: Duration = Duration::from_millis(10);

/// A pool on files, and how to run a daemon on it.
pub(crate) struct Pool {
    directory: PathBuf,
    daemon: PathBuf,
    nvme: SocketAddr,
}

/// A daemon that runs.
pub(crate) struct Daemon {
    child: Child,
}

impl Pool {
    /// Makes a pool of files in `directory` and a configuration for it.
    pub(crate) async fn format(
        directory: &Path,
        daemon: &Path,
        cli: &Path,
        members: u32,
        member_bytes: u64,
    ) -> Result<Self> {
        let mut paths = Vec::new();
        for index in 0..members {
            paths.push(directory.join(format!("member-{index}.img")));
        }
        let status = Command::new(cli)
            .args(["pool", "format", "--file-size", &member_bytes.to_string()])
            .args(&paths)
            .status()
            .await;
        ensure!(status.context("running cairn pool format")?.success(), "cairn pool format failed");
        let nvme = free_address()?;
        let pool = Self { directory: directory.to_owned(), daemon: daemon.to_owned(), nvme };
        pool.write_configuration(&paths)?;
        Ok(pool)
    }

    fn write_configuration(&self, members: &[PathBuf]) -> Result<()> {
        let members: Vec<String> = members.iter().map(|path| format!("{path:?}")).collect();
        let text = format!(
            "[pool]\ndevices = [{}]\n\n[grpc]\nsocket = {:?}\nsocket_mode = \"0600\"\n\n\
             [nvme]\nlisten = [\"{}\"]\n\n[metrics]\nenable = false\n",
            members.join(", "),
            self.socket(),
            self.nvme
        );
        Ok(std::fs::write(self.directory.join("cairnd.toml"), text)?)
    }

    /// The gRPC socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("cairnd.sock")
    }

    /// Where the target listens.
    pub(crate) fn nvme_address(&self) -> SocketAddr {
        self.nvme
    }

    /// Starts a daemon, without waiting for anything.
    pub(crate) fn start(&self) -> Result<Daemon> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let child = Command::new(&self.daemon)
            .arg("--config")
            .arg(self.directory.join("cairnd.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting cairnd")?;
        Ok(Daemon { child })
    }

    /// The log of all daemons of this pool.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("cairnd.log")
    }

    /// Waits until the daemon answers, and returns a channel to it.
    pub(crate) async fn ready(&self, daemon: &mut Daemon) -> Result<Channel> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("cairnd ended with {status} instead of serving");
            }
            if let Ok(channel) = rpc::connect(&self.socket()).await {
                let mut stats = StatsServiceClient::new(channel.clone());
                if stats.get_server_info(GetServerInfoRequest {}).await.is_ok() {
                    return Ok(channel);
                }
            }
            ensure!(Instant::now() < deadline, "cairnd does not answer after {START_TIMEOUT:?}");
            sleep(START_POLL).await;
        }
    }
}

impl Daemon {
    /// Ends the daemon as a crash does, and waits until the process is gone.
    pub(crate) async fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("cairnd had already ended, with {status}");
        }
        self.child.kill().await.context("SIGKILL")
    }
}

/// An address nobody listens on now.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
