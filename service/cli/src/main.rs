//! `cairn`: the command line. A client of the daemon's gRPC interface; formatting and the offline
//! check of devices go past it, through [`format`].
//!
//! Results go to standard output, as text or with `--json` as one JSON value; errors, questions and
//! progress go to standard error. Exit codes are those of [`failure::exit`].

mod admin;
mod allocinfo;
mod args;
mod connect;
mod cp;
mod damage;
mod debug;
mod dump;
mod failure;
mod files;
mod format;
mod get;
mod offline;
mod options;
mod output;
mod put;
mod resize;
mod scrub;
mod size;
mod snapshots;
mod target;
mod times;
mod top;
mod transfer;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Arguments, Command, FsckArguments, PoolCommand};
use connect::Session;
use failure::{Failure, Result};
use output::Output;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.global.json, arguments.global.quiet);
    match run(arguments, &output) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn run(arguments: Arguments, output: &Output) -> Result<u8> {
    let Arguments { global, command } = arguments;
    match command {
        Command::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "cairn", &mut text);
            output.bytes(&text)?;
            Ok(failure::exit::OK)
        }
        Command::Pool(PoolCommand::Format(format)) => offline::format(&format, output),
        Command::Dump(dump) => dump::run(&dump, output),
        Command::Fsck(arguments @ FsckArguments { online: false, .. }) => {
            offline::check(&arguments, output)
        }
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
            let result = runtime.block_on(async {
                let session = Session::connect(&global).await?;
                Box::pin(online(&session, command, output)).await
            });
            // A read of standard input may never end; nobody waits for it.
            runtime.shutdown_background();
            result
        }
    }
}

/// Runs a command that needs the daemon.
async fn online(session: &Session, command: Command, output: &Output) -> Result<u8> {
    match command {
        Command::Pool(command) => admin::pool(session, command, output).await,
        Command::Volume(command) => admin::volume(session, command, output).await,
        Command::Snapshot(command) => snapshots::run(session, command, output).await,
        Command::Clone { source, name } => snapshots::clone(session, source, name, output).await,
        Command::Send(arguments) => transfer::send(session, &arguments, output).await,
        Command::Receive { name } => transfer::receive(session, name, output).await,
        Command::Option(command) => options::run(session, command, output).await,
        Command::Fs(command) => admin::file_system(session, command, output).await,
        Command::Export(command) => admin::export(session, command, output).await,
        Command::Fsck(arguments) => admin::check(session, &arguments, output).await,
        Command::Scrub(command) => scrub::run(session, command, output).await,
        Command::Damage(command) => damage::run(session, command, output).await,
        Command::Stats => admin::stats(session, output).await,
        Command::Allocinfo(arguments) => allocinfo::run(session, &arguments, output).await,
        Command::Debug { command } => debug::run(session, command, output).await,
        Command::Timestats(arguments) => times::timestats(session, arguments, output).await,
        Command::Waits(arguments) => times::waits(session, arguments, output).await,
        Command::Top(arguments) => top::run(session, &arguments, output).await,
        Command::Put(arguments) => put::run(session, &arguments, output).await,
        Command::Cp(arguments) => cp::run(session, &arguments, output).await,
        Command::Get(arguments) => get::run(session, &arguments, output).await,
        other => files::run(session, other, output).await,
    }
    .map(|()| failure::exit::OK)
}
