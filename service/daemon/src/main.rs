//! `cairnd`: the storage daemon, the one place where the parts are assembled.
//!
//! This file is the command line; [`config`] reads the configuration, [`inspect`] compares it with the
//! machine, [`lifecycle`] runs the daemon. [`pool`] opens the devices, [`assembly`] starts the cores,
//! [`serve`] is what runs on them and how requests reach them.

mod allocations;
mod args;
mod assembly;
mod config;
mod exports;
mod inspect;
mod lifecycle;
mod logging;
mod metrics;
mod notify;
mod serve;

use std::io::Write as _;
use std::process::ExitCode;

use args::Args;
use clap::Parser as _;
use config::Config;

/// The configuration or the command line is wrong (clap uses the same).
const EXIT_CONFIG: u8 = 2;
/// The daemon failed.
const EXIT_FAILURE: u8 = 1;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_default_config {
        return print(&config::default_text());
    }
    let config = match config::load(&args.config) {
        Ok(config) => config,
        Err(errors) => {
            for problem in errors.0 {
                complain(&format!("{}: {problem}", args.config.display()));
            }
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if args.check_config {
        return check(&args, &config);
    }
    let log = match logging::start(&config.log) {
        Ok(log) => log,
        Err(why) => {
            complain(&why);
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    allocations::start(config.memory.allocation_profiling);
    lifecycle::run(&config, log)
}

/// `--check-config`: what the configuration says of this machine.
fn check(args: &Args, config: &Config) -> ExitCode {
    let problems = inspect::check(config);
    for problem in &problems {
        complain(&format!("{}: {problem}", args.config.display()));
    }
    if problems.is_empty() {
        return print(&format!("{}: good\n", args.config.display()));
    }
    ExitCode::from(EXIT_CONFIG)
}

/// Writes to standard output; a closed pipe is a failure, not a panic.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_FAILURE),
    }
}

/// One line to standard error, before there is a log.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "cairnd: {line}");
}
