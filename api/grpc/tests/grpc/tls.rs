//! TLS and mutual TLS over TCP, with certificates made for the test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::common::exports::Exports;
use crate::common::fake::Fake;
use crate::common::server_info;
use api_grpc::{Server, ServerConfig, TcpConfig, TlsConfig};
use engine_store::client::Client;
use proto::v1;
use proto::v1::stats_service_client::StatsServiceClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// An authority in memory, and what it signed as files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Signs a certificate for `name`, and returns its files.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert_path, key_path) =
            (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&cert_path, certificate.pem()).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        (cert_path, key_path)
    }
}

async fn serve(authority: &Authority, client_ca: Option<PathBuf>) -> SocketAddr {
    let (certificate, key) = authority.sign("localhost");
    let tcp = TcpConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        tls: Some(TlsConfig { certificate, key, client_ca }),
        plaintext: false,
        plaintext_beyond_loopback: false,
    };
    let config = ServerConfig { tcp: vec![tcp], ..ServerConfig::default() };
    let server = Server::bind(&config).await.unwrap();
    let address = server.tcp_addresses()[0];
    let client = Client::new(Fake::new());
    let forever = std::future::pending();
    tokio::spawn(server.serve(client, Exports::default(), server_info(), forever));
    address
}

fn trusting(ca: &Path) -> ClientTlsConfig {
    let ca = Certificate::from_pem(std::fs::read(ca).unwrap());
    ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost")
}

/// Whether a call gets through; connecting alone does not tell with TLS 1.3.
async fn answers(address: SocketAddr, tls: ClientTlsConfig) -> bool {
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    let Ok(channel) = endpoint.tls_config(tls).unwrap().connect().await else { return false };
    StatsServiceClient::new(channel).get_server_info(v1::GetServerInfoRequest {}).await.is_ok()
}

#[tokio::test]
async fn tls_serves_those_who_trust_it() {
    let (ours, other) = (Authority::new(), Authority::new());
    let address = serve(&ours, None).await;
    assert!(answers(address, trusting(&ours.path("ca.pem"))).await);
    assert!(!answers(address, trusting(&other.path("ca.pem"))).await);
    let plain = StatsServiceClient::connect(format!("http://{address}")).await;
    let got_through = match plain {
        Ok(mut client) => client.get_server_info(v1::GetServerInfoRequest {}).await.is_ok(),
        Err(_) => false,
    };
    assert!(!got_through, "plaintext on a TLS socket");
}

#[tokio::test]
async fn mutual_tls_serves_those_whom_the_authority_signed() {
    let (ours, other) = (Authority::new(), Authority::new());
    let address = serve(&ours, Some(ours.path("ca.pem"))).await;
    let identity = |(cert, key): (PathBuf, PathBuf)| {
        Identity::from_pem(std::fs::read(cert).unwrap(), std::fs::read(key).unwrap())
    };
    let trust = trusting(&ours.path("ca.pem"));
    assert!(!answers(address, trust.clone()).await, "without a certificate");
    let stranger = trust.clone().identity(identity(other.sign("client")));
    assert!(!answers(address, stranger).await, "of another authority");
    let friend = trust.identity(identity(ours.sign("client")));
    assert!(answers(address, friend).await);
}
