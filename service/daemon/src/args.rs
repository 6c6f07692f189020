//! The command line of cairnd.

use std::path::PathBuf;

use clap::Parser;

/// The Cairn storage daemon: serves one pool over gRPC and NVMe/TCP.
#[derive(Debug, Parser)]
#[command(name = "cairnd", version, about, after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// Configuration file
    #[arg(long, value_name = "PATH", default_value = "/etc/cairn/cairnd.toml")]
    pub(crate) config: PathBuf,

    /// Check the configuration and the devices it names, then exit: 0 if all is well, else 2
    #[arg(long)]
    pub(crate) check_config: bool,

    /// Print a configuration file with every key, its default and its meaning, then exit
    #[arg(long, conflicts_with = "check_config")]
    pub(crate) print_default_config: bool,
}

const EXIT_CODES: &str = "\
Exit codes: 0 after a clean shutdown; 1 when the daemon failed to start, failed, or could not shut \
down in time; 2 when the configuration or the command line is wrong.

Signals: SIGTERM and SIGINT shut down within shutdown.timeout_s, a second one ends the daemon at once \
(the next start recovers from the journal). SIGHUP does nothing: the configuration is read at start.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
