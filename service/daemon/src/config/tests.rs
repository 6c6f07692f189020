//! Every key documented, the defaults good, and the text of every refusal.

use std::path::PathBuf;

use super::keys::{KEYS, SECTIONS, default_text};
use super::{LogFormat, Mode, parse};

/// A file that has all that is required, and `more` behind it.
fn minimal(more: &str) -> String {
    format!("pool.devices = [\"/dev/a\"]\n{more}")
}

fn refusal(text: &str) -> String {
    match parse(text) {
        Ok(config) => panic!("accepted: {text}\nas {config:?}"),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn defaults_are_good_and_as_documented() {
    let config = parse(&minimal("")).unwrap();
    assert_eq!(config.pool.devices, [PathBuf::from("/dev/a")]);
    assert_eq!(config.grpc.socket_mode, Mode(0o660));
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.cores.idle_window_us, 50);
    assert_eq!(config.metrics.listen, "127.0.0.1:9464".parse().unwrap());
    let printed = default_text().replace("#devices = ", "devices = ");
    let mut again = parse(&printed).unwrap();
    again.pool = config.pool.clone();
    assert_eq!(again, config);
}

#[test]
fn default_text_lacks_only_the_devices() {
    let wanted = "pool.devices: missing; list every member of the pool, such as devices = \
                  [\"/dev/nvme0n1\"]";
    assert_eq!(refusal(&default_text()), wanted);
}

#[test]
fn every_key_is_documented_and_read() {
    let printed = default_text();
    for key in KEYS {
        assert!(SECTIONS.iter().any(|(name, _)| *name == key.section), "{key:?}");
        assert!(key.doc.len() > 20 && key.doc.ends_with('.'), "{key:?}");
        assert!(key.advice.len() > 5 && !key.advice.ends_with('.'), "{key:?}");
        assert!(key.default.is_some() || !key.example.is_empty(), "{key:?}");
        let value = key.default.unwrap_or(key.example);
        let shown = format!("{} = {value}", key.name);
        assert!(printed.lines().any(|line| line.trim_start_matches('#') == shown), "{shown}");
    }
    assert!(printed.lines().all(|line| line.len() <= 100));
    // All keys at once: each is known to the structs (they deny unknown fields) and has a value of
    // the right type. `count` and `list` exclude each other.
    let all = printed
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n");
    let config = parse(&all).unwrap();
    assert_eq!(config.cores.list, Some(vec![2, 3]));
    assert!(config.grpc.tls_client_ca.is_some());
    assert_eq!(config.grpc.socket_group.as_deref(), Some("cairn"));
}

#[test]
fn structs_have_no_key_that_the_table_lacks() {
    // Taking any key out of the defaults must fail to parse, except optional ones; and the number
    // of fields must be that of the table. Debug output names every field once.
    let config = format!("{:#?}", parse(&minimal("")).unwrap());
    let fields = config.lines().filter(|line| {
        let indented = line.starts_with("        ") && !line.starts_with("         ");
        indented && line.contains(": ")
    });
    assert_eq!(fields.count(), KEYS.len());
}

#[test]
fn the_example_is_the_default_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/cairnd.toml");
    let example = std::fs::read_to_string(path).unwrap();
    let expected = default_text().replace("#devices = ", "devices = ");
    assert!(
        example == expected,
        "deploy/cairnd.toml differs: write `cairnd --print-default-config` into it and uncomment \
         pool.devices"
    );
    parse(&example).unwrap();
}

/// Each wrong file behind a good `pool.devices`, with the exact text of its refusal.
const REFUSED: &[(&str, &str)] = &[
    (
        "[cores]\ncount = -1",
        "cores.count: -1 must be an integer from 0 to 64; use 0 to let the daemon choose",
    ),
    (
        "[cores]\ncount = 65",
        "cores.count: 65 must be an integer from 0 to 64; use 0 to let the daemon choose",
    ),
    (
        "[cores]\ncount = \"2\"",
        "cores.count: \"2\" must be an integer from 0 to 64; use 0 to let the daemon choose",
    ),
    (
        "[cores]\ncount = 1.5",
        "cores.count: 1.5 must be an integer from 0 to 64; use 0 to let the daemon choose",
    ),
    (
        "[cores]\nlist = []",
        "cores.list: a list of 0 must be a list of 1 to 64 integers from 0 to 4095; name each processor once, as in /proc/cpuinfo, or remove the key",
    ),
    (
        "[cores]\nlist = [1, -1]",
        "cores.list: the list's -1 must be a list of 1 to 64 integers from 0 to 4095; name each processor once, as in /proc/cpuinfo, or remove the key",
    ),
    (
        "[cores]\nlist = 3",
        "cores.list: 3 must be a list of 1 to 64 integers from 0 to 4095; name each processor once, as in /proc/cpuinfo, or remove the key",
    ),
    ("[cores]\nlist = [1, 1]", "cores.list: processor 1 is listed twice; name each once"),
    (
        "[cores]\nlist = [1]\ncount = 2",
        "cores.list: set together with cores.count; remove one of the two",
    ),
    ("[cores]\npin = 1", "cores.pin: 1 must be true or false; write true or false"),
    (
        "[cores]\nidle_window_us = -5",
        "cores.idle_window_us: -5 must be an integer from 0 to 1000000000 (microseconds); 50 suits most machines",
    ),
    (
        "[cores]\nshard_requests_max = 0",
        "cores.shard_requests_max: 0 must be an integer from 1 to 65536; use a power of two near the queue depth of the devices times their number",
    ),
    (
        "[cores]\ndevice_queue_depth = 5000",
        "cores.device_queue_depth: 5000 must be an integer from 1 to 4096; 256 suits NVMe devices, 32 SATA devices",
    ),
    ("[cores]\ncuont = 1", "cores.cuont: unknown key; the nearest is cores.count"),
    (
        "[memory]\nindex_cache_mib = 1",
        "memory.index_cache_mib: 1 must be an integer from 16 to 1048576 (MiB); about one thousandth of the data that is in use serves random access well",
    ),
    (
        "[memory]\nio_buffers_mib = 63",
        "memory.io_buffers_mib: 63 must be an integer from 64 to 1048576 (MiB); 512 keeps sixteen fast devices busy",
    ),
    ("[memory]\ncache = 5", "memory.cache: unknown key; the nearest is memory.data_cache_mib"),
    ("[memroy]\nindex_cache_mib = 64", "[memroy]: unknown section; the nearest is [memory]"),
    (
        "[grpc]\nsocket = \"cairnd.sock\"",
        "grpc.socket: \"cairnd.sock\" must be an absolute path; use a path below /run",
    ),
    (
        "[grpc]\nsocket_mode = 432",
        "grpc.socket_mode: 432 must be an octal mode from \"000\" to \"0777\", as a string; \"0600\" is for root alone, \"0660\" for a group as well",
    ),
    (
        "[grpc]\nsocket_mode = \"0888\"",
        "grpc.socket_mode: \"0888\" must be an octal mode from \"000\" to \"0777\", as a string; \"0600\" is for root alone, \"0660\" for a group as well",
    ),
    (
        "[grpc]\nsocket_mode = \"1777\"",
        "grpc.socket_mode: \"1777\" must be an octal mode from \"000\" to \"0777\", as a string; \"0600\" is for root alone, \"0660\" for a group as well",
    ),
    (
        "[grpc]\nsocket_group = \" \"",
        "grpc.socket_group: \" \" must be a string that is not empty; create the group or remove the key",
    ),
    (
        "[grpc]\nlisten = \"localhost:50051\"",
        "grpc.listen: \"localhost:50051\" must be \"IP:port\", the port from 1 to 65535; write an IP address and a port, or remove the key",
    ),
    (
        "[grpc]\nlisten = \"0.0.0.0:50051\"",
        "grpc.listen: 0.0.0.0:50051 can be reached from other machines and has no TLS; set grpc.tls_certificate and grpc.tls_key, or use a loopback address",
    ),
    (
        "[grpc]\nlisten = \"192.0.2.1:50051\"\ntls_certificate = \"/c\"",
        "grpc.tls_key: missing; tls_certificate needs its key",
    ),
    (
        "[grpc]\nlisten = \"192.0.2.1:50051\"\ntls_key = \"/k\"",
        "grpc.tls_certificate: missing; tls_key needs its certificate",
    ),
    (
        "[grpc]\nlisten = \"127.0.0.1:50051\"\ntls_client_ca = \"/k\"",
        "grpc.tls_client_ca: set without tls_certificate and tls_key; set these or remove it",
    ),
    (
        "[grpc]\ntls_key = \"/k\"",
        "grpc.tls_key: set without grpc.listen; the Unix socket has no TLS, so set grpc.listen or remove the key",
    ),
    (
        "[nvme]\nlisten = []",
        "nvme.listen: a list of 0 must be a list of 1 to 16 addresses \"IP:port\", the port from 1 to 65535; write IP addresses and ports such as \"192.0.2.1:4420\"",
    ),
    (
        "[nvme]\nlisten = [\"127.0.0.1\"]",
        "nvme.listen: the list's \"127.0.0.1\" must be a list of 1 to 16 addresses \"IP:port\", the port from 1 to 65535; write IP addresses and ports such as \"192.0.2.1:4420\"",
    ),
    (
        "[nvme]\nlisten = [\"127.0.0.1:0\"]",
        "nvme.listen: the list's \"127.0.0.1:0\" must be a list of 1 to 16 addresses \"IP:port\", the port from 1 to 65535; write IP addresses and ports such as \"192.0.2.1:4420\"",
    ),
    (
        "[nvme]\nlisten = [\"127.0.0.1:9\", \"127.0.0.1:9\"]",
        "nvme.listen: 127.0.0.1:9 clashes with 127.0.0.1:9 of nvme.listen; use another",
    ),
    (
        "[nvme]\nconnections_max = 0",
        "nvme.connections_max: 0 must be an integer from 1 to 65536; multiply the hosts by their processors plus one",
    ),
    ("[nvme]\ntimeout_s = 10", "nvme.timeout_s: unknown key; the nearest is shutdown.timeout_s"),
    (
        "[metrics]\nlisten = \"127.0.0.1:4420\"",
        "metrics.listen: 127.0.0.1:4420 clashes with 127.0.0.1:4420 of nvme.listen; use another",
    ),
    (
        "[metrics]\nlisten = \"0.0.0.0:4420\"",
        "metrics.listen: 0.0.0.0:4420 clashes with 127.0.0.1:4420 of nvme.listen; use another",
    ),
    (
        "[metrics]\nlisten = 9464",
        "metrics.listen: 9464 must be \"IP:port\", the port from 1 to 65535; write an IP address and a port",
    ),
    (
        "[log]\nformat = \"xml\"",
        "log.format: \"xml\" must be \"text\" or \"json\"; write \"text\" or \"json\"",
    ),
    (
        "[log]\nfilter = \"\"",
        "log.filter: \"\" must be a string that is not empty; \"info\" suits normal operation",
    ),
    (
        "[log]\nfilter = \"a=b=c\"",
        "log.filter: \"a=b=c\" is no directive; write MODULE=LEVEL, as engine_store::journal=debug; \"info\" suits normal operation",
    ),
    (
        "[shutdown]\ntimeout_s = 0",
        "shutdown.timeout_s: 0 must be an integer from 1 to 3600 (seconds); 30 suits most pools",
    ),
    (
        "[shutdown]\ntimeout_s = 99999999999",
        "shutdown.timeout_s: 99999999999 must be an integer from 1 to 3600 (seconds); 30 suits most pools",
    ),
    (
        "[[shutdown]]\ntimeout_s = 1",
        "shutdown: must be a table; write [shutdown] and its keys below it",
    ),
    ("listen = 1", "listen: unknown key outside of any section; the nearest key is grpc.listen"),
    ("devics = 1", "devics: unknown key outside of any section; the nearest key is pool.devices"),
    (
        "[cores]\ncount = -1\npin = 2\n[x]",
        "cores.count: -1 must be an integer from 0 to 64; use 0 to let the daemon choose\ncores.pin: 2 must be true or false; write true or false\n[x]: unknown section; the nearest is [log]",
    ),
];

/// Whole files that are refused.
const REFUSED_WHOLE: &[(&str, &str)] = &[
    (
        "",
        "pool.devices: missing; list every member of the pool, such as devices = [\"/dev/nvme0n1\"]",
    ),
    (
        "[pool]\ndevices = []",
        "pool.devices: a list of 0 must be a list of 1 to 64 absolute paths; list every member of the pool, each once, by its full path",
    ),
    (
        "[pool]\ndevices = \"/dev/a\"",
        "pool.devices: \"/dev/a\" must be a list of 1 to 64 absolute paths; list every member of the pool, each once, by its full path",
    ),
    (
        "[pool]\ndevices = [\"sda\"]",
        "pool.devices: the list's \"sda\" must be a list of 1 to 64 absolute paths; list every member of the pool, each once, by its full path",
    ),
    (
        "[pool]\ndevices = [\"/a\\u0000b\"]",
        "pool.devices: the list's \"/a\\0b\" must be a list of 1 to 64 absolute paths; list every member of the pool, each once, by its full path",
    ),
    (
        "[pool]\ndevices = [\"/a\", \"/a\"]",
        "pool.devices: \"/a\" is listed twice; list every member once",
    ),
];

#[test]
fn refusals_say_what_to_do() {
    for (more, expected) in REFUSED {
        assert_eq!(refusal(&minimal(more)), *expected, "for {more}");
    }
    for (whole, expected) in REFUSED_WHOLE {
        assert_eq!(refusal(whole), *expected, "for {whole}");
    }
}

#[cfg(not(feature = "glommio"))]
#[test]
fn a_host_that_was_not_built_is_refused() {
    let wanted = "cores.host: this cairnd was built without the feature \"glommio\"; build it with \
                  that, or use \"thread\"";
    assert_eq!(refusal(&minimal("[cores]\nhost = \"glommio\"")), wanted);
}

#[test]
fn long_values_and_paths_are_bounded() {
    let long = "x".repeat(1 << 16);
    let text = refusal(&minimal(&format!("[grpc]\nsocket = \"{long}\"")));
    assert!(text.len() < 200, "{text}");
    let text = refusal(&minimal(&format!("[grpc]\nsocket = \"/{long}\"")));
    let wanted = "grpc.socket: the path has 65537 bytes, a socket's may have 107; shorten it";
    assert_eq!(text, wanted);
    let text = refusal(&minimal(&format!("[grpc]\n{long} = 1")));
    assert!(text.starts_with("grpc.xxx") && text.len() < 200, "{text}");
}

#[test]
fn syntax_errors_name_the_place() {
    let text = refusal("[pool]\ndevices = [\"/a\"\n");
    assert!(text.starts_with("not TOML: line "), "{text}");
    assert!(!text.contains('\n'), "{text}");
}
