//! The table of all keys, and the commented default file that is made from it.

use std::fmt::Write as _;

/// Most members of a pool (the on-disk member table has this many entries at most).
pub(crate) const DEVICES_MAX: usize = 64;
/// Most polled cores.
pub(crate) const CORES_MAX: usize = 64;
/// Most addresses that the NVMe target listens on.
pub(crate) const LISTEN_MAX: usize = 16;

/// What kind of value a key takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// true or false.
    Bool,
    /// An integer; `unit` is empty for a plain count.
    Integer { min: i64, max: i64, unit: &'static str },
    /// A string that is not empty.
    Text,
    /// An absolute path.
    Path,
    /// An octal mode as a string.
    Mode,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An IP address and a port.
    Address,
    /// Absolute paths, so many at most.
    Paths { max: usize },
    /// Addresses, so many at most.
    Addresses { max: usize },
    /// Integers, so many at most.
    Integers { min: i64, max: i64, count_max: usize },
}

/// One key of the file.
#[derive(Debug)]
pub(crate) struct Key {
    /// Table.
    pub(crate) section: &'static str,
    /// Name in it.
    pub(crate) name: &'static str,
    /// What it takes.
    pub(crate) kind: Kind,
    /// TOML text of the default; `None`: unset unless given.
    pub(crate) default: Option<&'static str>,
    /// TOML text shown for a key without a default.
    pub(crate) example: &'static str,
    /// What it means.
    pub(crate) doc: &'static str,
    /// What to do when the value is refused.
    pub(crate) advice: &'static str,
}

/// Sections in the order of the file, with their meaning.
pub(crate) const SECTIONS: &[(&str, &str)] = &[
    ("pool", "The pool that this daemon serves."),
    (
        "cores",
        "The polled cores: one thread each, which runs shards of the engine, devices and \
      NVMe/TCP connections. gRPC and metrics run on two threads of their own.",
    ),
    ("memory", "Bounds of memory."),
    ("grpc", "The gRPC server (administration and files)."),
    ("nvme", "The NVMe/TCP target (block volumes)."),
    ("metrics", "Prometheus metrics over HTTP, at /metrics."),
    ("log", "Logging to standard error."),
    ("shutdown", "What happens on SIGTERM and SIGINT."),
];

const fn int(min: i64, max: i64, unit: &'static str) -> Kind {
    Kind::Integer { min, max, unit }
}

/// Every key there is.
pub(crate) const KEYS: &[Key] = &[
    Key {
        section: "pool",
        name: "devices",
        kind: Kind::Paths { max: DEVICES_MAX },
        default: None,
        example: "[\"/dev/disk/by-id/nvme-example\"]",
        doc: "Paths of all members of the pool: block devices or regular files, in any order. \
              Required. `cairn pool format` makes a pool. Use names below /dev/disk/by-id: names such \
              as /dev/sdb change from boot to boot.",
        advice: "list every member of the pool, each once, by its full path",
    },
    Key {
        section: "pool",
        name: "discard",
        kind: Kind::Choice(&["auto", "always", "never"]),
        default: Some("\"auto\""),
        example: "\"auto\"",
        doc: "What becomes free is discarded: \"auto\" on block devices that can, \"always\" in regular \
              files, too, which then take no more room than what they hold, but flushes wait for what \
              has to be allocated anew; \"never\".",
        advice: "write \"auto\", \"always\" or \"never\"",
    },
    Key {
        section: "cores",
        name: "count",
        kind: int(0, CORES_MAX as i64, ""),
        default: Some("0"),
        example: "0",
        doc: "How many polled cores. 0: as many as there are processors, less one for the control \
              threads, at least one. Never more than the pool has shards.",
        advice: "use 0 to let the daemon choose",
    },
    Key {
        section: "cores",
        name: "list",
        kind: Kind::Integers { min: 0, max: 4095, count_max: CORES_MAX },
        default: None,
        example: "[2, 3]",
        doc: "Processors to use, by their Linux numbers, instead of `count`.",
        advice: "name each processor once, as in /proc/cpuinfo, or remove the key",
    },
    Key {
        section: "cores",
        name: "pin",
        kind: Kind::Bool,
        default: Some("true"),
        example: "true",
        doc: "Whether each polled thread stays on its processor.",
        advice: "write true or false",
    },
    Key {
        section: "cores",
        name: "host",
        kind: Kind::Choice(&["thread", "glommio"]),
        default: Some("\"thread\""),
        example: "",
        doc: "What runs the polled loops: \"thread\", a bare thread, or \"glommio\", a glommio \
              executor, if cairnd was built with the feature `glommio` (for measurements).",
        advice: "\"thread\" is the usual one",
    },
    Key {
        section: "cores",
        name: "idle_window_us",
        kind: int(0, 1_000_000_000, "microseconds"),
        default: Some("50"),
        example: "50",
        doc: "How long a core polls in vain before it sleeps until something happens. 0 sleeps at \
              once: least power, more latency. 1000000000 (17 minutes) practically never sleeps.",
        advice: "50 suits most machines",
    },
    Key {
        section: "cores",
        name: "shard_requests_max",
        kind: int(1, 65_536, ""),
        default: Some("256"),
        example: "256",
        doc: "Most requests that one shard works on at a time. More wait their turn.",
        advice: "use a power of two near the queue depth of the devices times their number",
    },
    Key {
        section: "cores",
        name: "device_queue_depth",
        kind: int(1, 4096, ""),
        default: Some("256"),
        example: "256",
        doc: "Operations in flight from one core to one device. More wait inside the daemon.",
        advice: "256 suits NVMe devices, 32 SATA devices",
    },
    Key {
        section: "memory",
        name: "index_cache_mib",
        kind: int(16, 1 << 20, "MiB"),
        default: Some("256"),
        example: "256",
        doc: "Memory for index nodes, shared equally by all shards. A shard always gets what its \
              largest operation needs, however small this is.",
        advice: "about one thousandth of the data that is in use serves random access well",
    },
    Key {
        section: "memory",
        name: "data_cache_mib",
        kind: int(0, 1 << 20, "MiB"),
        default: Some("256"),
        example: "256",
        doc: "Memory for data that was read or read ahead, shared equally by all shards. It is given \
              back when buffers run short. 0 keeps none, and reads nothing ahead.",
        advice: "0 suits clients that cache for themselves, such as virtual machines",
    },
    Key {
        section: "memory",
        name: "io_buffers_mib",
        kind: int(64, 1 << 20, "MiB"),
        default: Some("512"),
        example: "512",
        doc: "Data of the reads and writes that all shards work on at a time, shared equally by \
              the cores. A request that would exceed its core's part waits its turn.",
        advice: "512 keeps sixteen fast devices busy",
    },
    Key {
        section: "memory",
        name: "allocation_profiling",
        kind: Kind::Choice(&["on", "off", "never"]),
        default: Some("\"on\""),
        example: "",
        doc: "Whether it is counted which part of the daemon holds how much memory (cairn \
              allocinfo). \"off\" can be switched on later, \"never\" not before a restart.",
        advice: "leave it on: it costs 2 to 3 % of the instructions of small requests",
    },
    Key {
        section: "grpc",
        name: "socket",
        kind: Kind::Path,
        default: Some("\"/run/cairn/cairnd.sock\""),
        example: "",
        doc: "Path of the Unix socket, at most 107 bytes (sun_path of unix(7)). Its directory must \
              exist.",
        advice: "use a path below /run",
    },
    Key {
        section: "grpc",
        name: "socket_mode",
        kind: Kind::Mode,
        default: Some("\"0660\""),
        example: "",
        doc: "Permission bits of the socket, in octal. Who may write to it administers the pool.",
        advice: "\"0600\" is for root alone, \"0660\" for a group as well",
    },
    Key {
        section: "grpc",
        name: "socket_group",
        kind: Kind::Text,
        default: None,
        example: "\"cairn\"",
        doc: "Group that owns the socket: a name from /etc/group or a number. Unset: the daemon's \
              own.",
        advice: "create the group or remove the key",
    },
    Key {
        section: "grpc",
        name: "listen",
        kind: Kind::Address,
        default: None,
        example: "\"192.0.2.1:50051\"",
        doc: "TCP address to serve gRPC on as well. Needs tls_certificate and tls_key unless it is \
              a loopback address.",
        advice: "write an IP address and a port, or remove the key",
    },
    Key {
        section: "grpc",
        name: "tls_certificate",
        kind: Kind::Path,
        default: None,
        example: "\"/etc/cairn/server.pem\"",
        doc: "Certificate chain for `listen`, in PEM.",
        advice: "name a PEM file by its full path",
    },
    Key {
        section: "grpc",
        name: "tls_key",
        kind: Kind::Path,
        default: None,
        example: "\"/etc/cairn/server.key\"",
        doc: "Private key of the certificate, in PEM. Only root should be able to read it.",
        advice: "name a PEM file by its full path",
    },
    Key {
        section: "grpc",
        name: "tls_client_ca",
        kind: Kind::Path,
        default: None,
        example: "\"/etc/cairn/clients.pem\"",
        doc: "Authorities, in PEM, one of which must have signed a client's certificate. Unset: \
              clients show no certificate.",
        advice: "name a PEM file by its full path",
    },
    Key {
        section: "nvme",
        name: "enable",
        kind: Kind::Bool,
        default: Some("true"),
        example: "true",
        doc: "Whether the target runs.",
        advice: "write true or false",
    },
    Key {
        section: "nvme",
        name: "listen",
        kind: Kind::Addresses { max: LISTEN_MAX },
        default: Some("[\"127.0.0.1:4420\"]"),
        example: "",
        doc: "Addresses (traddr:trsvcid) that hosts connect to; 4420 is the port IANA gives to \
              NVMe over Fabrics. Anyone who reaches them can try: there is no authentication of \
              hosts but the allow list of each export, so use a network of its own.",
        advice: "write IP addresses and ports such as \"192.0.2.1:4420\"",
    },
    Key {
        section: "nvme",
        name: "connections_max",
        kind: int(1, 65_536, ""),
        default: Some("1024"),
        example: "1024",
        doc: "Most TCP connections on all cores together. A controller of a Linux host uses one, \
              and one more for each of its processors.",
        advice: "multiply the hosts by their processors plus one",
    },
    Key {
        section: "nvme",
        name: "queues_max",
        kind: int(1, 1024, ""),
        default: Some("64"),
        example: "64",
        doc: "Most I/O queues granted to one controller.",
        advice: "the number of processors of the largest host is enough",
    },
    Key {
        section: "nvme",
        name: "in_flight_mib",
        kind: int(8, 1 << 20, "MiB"),
        default: Some("256"),
        example: "256",
        doc: "Data of commands in flight on all cores together. A connection that would exceed its \
              core's part is read later (back-pressure).",
        advice: "1 MiB per connection is plenty",
    },
    Key {
        section: "metrics",
        name: "enable",
        kind: Kind::Bool,
        default: Some("true"),
        example: "true",
        doc: "Whether metrics are served.",
        advice: "write true or false",
    },
    Key {
        section: "metrics",
        name: "listen",
        kind: Kind::Address,
        default: Some("\"127.0.0.1:9464\""),
        example: "",
        doc: "Address of the endpoint. It has no authentication.",
        advice: "write an IP address and a port",
    },
    Key {
        section: "log",
        name: "filter",
        kind: Kind::Text,
        default: Some("\"info\""),
        example: "",
        doc: "What is logged: a level (error, warn, info, debug, trace), or directives such as \
              \"info,nvme_target=debug\".",
        advice: "\"info\" suits normal operation",
    },
    Key {
        section: "log",
        name: "format",
        kind: Kind::Choice(&["text", "json"]),
        default: Some("\"text\""),
        example: "",
        doc: "\"text\" for people, \"json\" for one JSON object a line.",
        advice: "write \"text\" or \"json\"",
    },
    Key {
        section: "shutdown",
        name: "timeout_s",
        kind: int(1, 3600, "seconds"),
        default: Some("30"),
        example: "30",
        doc: "How long a clean shutdown may take. Past it the daemon says what was pending and \
              exits with 1; the next start then recovers from the journal. TimeoutStopSec of the \
              systemd unit must be longer.",
        advice: "30 suits most pools",
    },
];

/// The key `section.name`.
pub(crate) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// The whole file with every key at its default, documented: `--print-default-config`.
pub(crate) fn default_text() -> String {
    let mut text = String::from(
        "# Configuration of cairnd. Every key is shown with its default; a key that is commented\n\
         # out has none. `cairnd --check-config` checks a file, and the devices it names.\n",
    );
    for (section, doc) in SECTIONS {
        text.push('\n');
        comment(&mut text, doc);
        let _ = writeln!(text, "[{section}]");
        for key in KEYS.iter().filter(|key| key.section == *section) {
            text.push('\n');
            comment(&mut text, key.doc);
            comment(&mut text, &format!("Allowed: {}.", key.kind.allowed()));
            match key.default {
                Some(default) => {
                    let _ = writeln!(text, "{} = {default}", key.name);
                }
                None => {
                    let _ = writeln!(text, "#{} = {}", key.name, key.example);
                }
            }
        }
    }
    text
}

/// Appends `words` as comment lines of at most 100 columns.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.len() + 1 + word.len() > 100 {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

impl Kind {
    /// The range in words.
    pub(crate) fn allowed(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Integer { min, max, unit: "" } => format!("an integer from {min} to {max}"),
            Self::Integer { min, max, unit } => format!("an integer from {min} to {max} ({unit})"),
            Self::Text => "a string that is not empty".to_owned(),
            Self::Path => "an absolute path".to_owned(),
            Self::Mode => "an octal mode from \"000\" to \"0777\", as a string".to_owned(),
            Self::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
                words.join(" or ")
            }
            Self::Address => "\"IP:port\", the port from 1 to 65535".to_owned(),
            Self::Paths { max } => format!("a list of 1 to {max} absolute paths"),
            Self::Addresses { max } => {
                format!("a list of 1 to {max} addresses \"IP:port\", the port from 1 to 65535")
            }
            Self::Integers { min, max, count_max } => {
                format!("a list of 1 to {count_max} integers from {min} to {max}")
            }
        }
    }
}
