//! Rules that concern more than one key, or that a range cannot say.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::error::Problem;
use super::{Config, CoreHost, Grpc};
use crate::logging;

/// Bytes of a Unix socket's path without its final NUL (unix(7): sun_path has 108).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// All problems of a configuration whose single values are good.
pub(crate) fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_pool(config, &mut problems);
    check_cores(config, &mut problems);
    check_grpc(&config.grpc, &mut problems);
    check_addresses(config, &mut problems);
    if let Err(error) = logging::parse(&config.log.filter) {
        let what = format!("{error}; \"info\" suits normal operation");
        problems.push(Problem::new("log.filter", what));
    }
    problems
}

fn check_pool(config: &Config, problems: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for path in &config.pool.devices {
        if !seen.insert(path) {
            let what = format!("{:?} is listed twice; list every member once", path);
            problems.push(Problem::new("pool.devices", what));
        }
    }
}

fn check_cores(config: &Config, problems: &mut Vec<Problem>) {
    if config.cores.host == CoreHost::Glommio && cfg!(not(feature = "glommio")) {
        let what = "this cairnd was built without the feature \"glommio\"; build it with that, or \
                    use \"thread\"";
        problems.push(Problem::new("cores.host", what));
    }
    let Some(list) = &config.cores.list else { return };
    if config.cores.count != 0 {
        let what = "set together with cores.count; remove one of the two";
        problems.push(Problem::new("cores.list", what));
    }
    let mut seen = BTreeSet::new();
    for processor in list {
        if !seen.insert(processor) {
            let what = format!("processor {processor} is listed twice; name each once");
            problems.push(Problem::new("cores.list", what));
        }
    }
}

fn check_grpc(grpc: &Grpc, problems: &mut Vec<Problem>) {
    let bytes = grpc.socket.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        let what = format!(
            "the path has {bytes} bytes, a socket's may have {SOCKET_PATH_BYTES_MAX}; shorten it"
        );
        problems.push(Problem::new("grpc.socket", what));
    }
    let tls = [
        ("grpc.tls_certificate", grpc.tls_certificate.is_some()),
        ("grpc.tls_key", grpc.tls_key.is_some()),
        ("grpc.tls_client_ca", grpc.tls_client_ca.is_some()),
    ];
    let Some(address) = grpc.listen else {
        for (key, _) in tls.iter().filter(|(_, given)| *given) {
            let what = "set without grpc.listen; the Unix socket has no TLS, so set grpc.listen or \
                        remove the key";
            problems.push(Problem::new(*key, what));
        }
        return;
    };
    let [(_, certificate), (_, key), (_, client_ca)] = tls;
    match (certificate, key) {
        (true, false) => {
            problems.push(Problem::new("grpc.tls_key", "missing; tls_certificate needs its key"));
        }
        (false, true) => {
            let what = "missing; tls_key needs its certificate";
            problems.push(Problem::new("grpc.tls_certificate", what));
        }
        (false, false) if client_ca => {
            let what = "set without tls_certificate and tls_key; set these or remove it";
            problems.push(Problem::new("grpc.tls_client_ca", what));
        }
        (false, false) if !address.ip().is_loopback() => {
            let what = format!(
                "{address} can be reached from other machines and has no TLS; set \
                 grpc.tls_certificate and grpc.tls_key, or use a loopback address"
            );
            problems.push(Problem::new("grpc.listen", what));
        }
        _ => {}
    }
}

fn check_addresses(config: &Config, problems: &mut Vec<Problem>) {
    let mut seen: Vec<(&str, SocketAddr)> = Vec::new();
    let nvme = config.nvme.listen.iter().filter(|_| config.nvme.enable);
    let all = config
        .grpc
        .listen
        .iter()
        .map(|address| ("grpc.listen", *address))
        .chain(nvme.map(|address| ("nvme.listen", *address)))
        .chain(config.metrics.enable.then_some(("metrics.listen", config.metrics.listen)));
    for (key, address) in all {
        match seen.iter().find(|(_, other)| overlap(*other, address)) {
            Some((other_key, other)) => {
                let what = format!("{address} clashes with {other} of {other_key}; use another");
                problems.push(Problem::new(key, what));
            }
            None => seen.push((key, address)),
        }
    }
}

/// Whether both cannot be bound at once.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let wildcard = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && (a.ip() == b.ip() || (wildcard && a.is_ipv4() == b.is_ipv4()))
}
