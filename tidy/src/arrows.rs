//! The arrows between crates: who may depend on whom, and on which outside worlds.
//!
//! docs/architecture.md says why. Dependencies for tests and builds follow the same arrows, with the
//! exceptions named in [`TEST_ARROWS`]. Every crate takes the workspace's lints or, where it has
//! unsafe code of its own, states them with `unsafe_code = "deny"`.

use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::Finding;

/// What a crate may know.
struct Arrow {
    name: &'static str,
    /// Crates of this workspace it may depend on.
    may_use: &'static [&'static str],
    /// Crates from outside it must not depend on, by prefix.
    never: &'static [&'static str],
}

/// Runtimes, sockets, clocks, wire protocols: what deterministic code must not be able to reach.
const WORLD: &[&str] = &[
    "tokio",
    "glommio",
    "io-uring",
    "rustix",
    "libc",
    "socket2",
    "hyper",
    "tonic",
    "rand",
    "nix",
    "tracing-subscriber",
    "chrono",
];

const ARROWS: [Arrow; 18] = [
    Arrow { name: "engine-base", may_use: &[], never: WORLD },
    Arrow {
        name: "engine-memory",
        may_use: &["engine-base"],
        never: &["tokio", "glommio", "tonic", "hyper"],
    },
    Arrow {
        name: "engine-device",
        may_use: &["engine-base", "engine-memory"],
        never: &["tokio", "glommio", "tonic", "hyper"],
    },
    Arrow {
        name: "engine-shard",
        may_use: &["engine-base", "engine-memory", "engine-device"],
        // tokio and glommio are optional there: hosts and ports for others, no part of the reactor.
        never: &["tonic", "hyper"],
    },
    Arrow {
        name: "engine-store",
        may_use: &["engine-base", "engine-memory", "engine-device"],
        never: WORLD,
    },
    Arrow {
        name: "engine-sim",
        may_use: &[
            "engine-base",
            "engine-memory",
            "engine-device",
            "engine-store",
            "engine-transfer",
        ],
        never: WORLD,
    },
    Arrow {
        // The engine in one thread, for tools and measurements.
        name: "engine-embed",
        may_use: &["engine-base", "engine-memory", "engine-device", "engine-shard", "engine-store"],
        never: &["tokio", "glommio", "tonic", "hyper"],
    },
    Arrow {
        name: "engine-transfer",
        may_use: &["engine-base", "engine-memory", "engine-store"],
        never: WORLD,
    },
    Arrow { name: "nvme-spec", may_use: &[], never: WORLD },
    Arrow {
        name: "nvme-target",
        may_use: &["engine-base", "engine-memory", "engine-store", "nvme-spec"],
        never: &["tokio", "glommio", "tonic", "hyper"],
    },
    Arrow { name: "proto", may_use: &[], never: &["glommio", "io-uring", "rustix"] },
    Arrow {
        name: "api-grpc",
        may_use: &["engine-base", "engine-memory", "engine-store", "engine-transfer", "proto"],
        never: &["glommio", "io-uring"],
    },
    Arrow {
        name: "service-daemon",
        may_use: &[
            "engine-base",
            "engine-memory",
            "engine-device",
            "engine-shard",
            "engine-store",
            "engine-embed",
            "nvme-spec",
            "nvme-target",
            "proto",
            "api-grpc",
        ],
        never: &[],
    },
    Arrow {
        name: "service-cli",
        // The engine for what needs no daemon: making a pool, and checking one offline.
        may_use: &[
            "engine-base",
            "engine-memory",
            "engine-device",
            "engine-store",
            "engine-embed",
            "proto",
        ],
        never: &["glommio"],
    },
    Arrow {
        name: "benches",
        may_use: &[
            "engine-base",
            "engine-memory",
            "engine-device",
            "engine-shard",
            "engine-store",
            "engine-embed",
            "nvme-spec",
            "nvme-target",
            "proto",
        ],
        never: &[],
    },
    Arrow { name: "tests-crash", may_use: &["engine-base", "nvme-spec", "proto"], never: &[] },
    Arrow { name: "tidy", may_use: &[], never: WORLD },
    Arrow {
        name: "cairn-fuzz",
        may_use: &[
            "engine-base",
            "engine-memory",
            "engine-device",
            "engine-store",
            "engine-transfer",
            "nvme-spec",
            "nvme-target",
            "proto",
        ],
        never: &[],
    },
];

/// What tests of a crate may use beyond its arrows, of our crates and of [`WORLD`].
const TEST_ARROWS: [(&str, &[&str]); 4] = [
    ("nvme-target", &["engine-device"]),
    ("engine-transfer", &["engine-device", "engine-embed"]),
    ("api-grpc", &["engine-device"]),
    ("service-cli", &["api-grpc"]),
];

/// Checks one manifest of a package. `workspace` names every package of the workspace.
#[must_use]
pub fn check(path: &str, text: &str, workspace: &BTreeSet<String>) -> Vec<Finding> {
    let manifest: Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(path, 0, format!("cannot be parsed: {error}"))],
    };
    let Some(name) = name_in(&manifest) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    match ARROWS.iter().find(|arrow| arrow.name == name) {
        None => findings.push(Finding::new(
            path,
            0,
            format!("{name} has no place in tidy/src/arrows.rs: say what it may know"),
        )),
        Some(arrow) => findings.extend(dependencies(path, &manifest, arrow, workspace)),
    }
    if !path.starts_with("fuzz/") {
        findings.extend(lints(path, &manifest));
    }
    findings
}

/// The name of the package a manifest describes; `None` for a workspace alone, or no manifest.
#[must_use]
pub fn package_name(text: &str) -> Option<String> {
    let manifest: Table = text.parse().ok()?;
    name_in(&manifest).map(str::to_owned)
}

fn name_in(manifest: &Table) -> Option<&str> {
    manifest.get("package")?.get("name")?.as_str()
}

fn dependencies(
    path: &str,
    manifest: &Table,
    arrow: &Arrow,
    workspace: &BTreeSet<String>,
) -> Vec<Finding> {
    let for_tests =
        TEST_ARROWS.iter().find(|(name, _)| *name == arrow.name).map_or(&[][..], |t| t.1);
    let mut findings = Vec::new();
    for (section, dependency) in dependency_names(manifest) {
        let is_for_tests =
            section == "dev-dependencies" && for_tests.contains(&dependency.as_str());
        // A crate that names itself turns on features of its own for its tests.
        let is_itself = section == "dev-dependencies" && dependency == arrow.name;
        if is_for_tests || is_itself {
            continue;
        }
        let is_ours = workspace.contains(&dependency);
        if is_ours && !arrow.may_use.contains(&dependency.as_str()) {
            let message = format!("{} must not know {dependency} ({section})", arrow.name);
            findings.push(Finding::new(path, 0, message));
        }
        let is_banned =
            |never: &&str| dependency == **never || dependency.starts_with(&format!("{never}-"));
        if !is_ours && arrow.never.iter().any(is_banned) {
            let message = format!("{} must not reach {dependency} ({section})", arrow.name);
            findings.push(Finding::new(path, 0, message));
        }
    }
    findings
}

/// Every dependency with its section, those of `[target.….dependencies]` too.
fn dependency_names(manifest: &Table) -> Vec<(&'static str, String)> {
    const SECTIONS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
    let targets = manifest.get("target").and_then(Value::as_table);
    let tables = targets.into_iter().flat_map(|t| t.values()).filter_map(Value::as_table);
    let mut names = Vec::new();
    for table in tables.chain([manifest]) {
        for section in SECTIONS {
            let entries = table.get(section).and_then(Value::as_table);
            for (key, value) in entries.into_iter().flatten() {
                let package = value.get("package").and_then(Value::as_str);
                names.push((section, package.unwrap_or(key).to_owned()));
            }
        }
    }
    names
}

fn lints(path: &str, manifest: &Table) -> Option<Finding> {
    let lints = manifest.get("lints");
    let from_workspace =
        lints.and_then(|l| l.get("workspace")).and_then(Value::as_bool).unwrap_or(false);
    let own = lints.and_then(|l| l.get("rust")).and_then(|r| r.get("unsafe_code"));
    let denies_unsafe = own.and_then(Value::as_str) == Some("deny");
    (!from_workspace && !denies_unsafe).then(|| {
        let message =
            "no [lints] section: `workspace = true`, or own lints with unsafe_code = deny";
        Finding::new(path, 0, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> usize {
        let workspace = ARROWS.iter().map(|arrow| arrow.name.to_owned()).collect();
        check("x/Cargo.toml", text, &workspace).len()
    }

    const STORE: &str = "[package]\nname = \"engine-store\"\n[lints]\nworkspace = true\n";

    #[test]
    fn an_arrow_that_points_up_is_found() {
        let with = |dependency: &str| count(&format!("{STORE}[dependencies]\n{dependency}\n"));
        assert_eq!(with("engine-base.workspace = true"), 0);
        assert_eq!(with("engine-shard.workspace = true"), 1);
        assert_eq!(with("nvme-target = { path = \"../nvme\" }"), 1);
        assert_eq!(with("renamed = { package = \"api-grpc\", path = \"x\" }"), 1);
    }

    #[test]
    fn the_outside_world_is_kept_out() {
        let with = |section: &str| count(&format!("{STORE}{section}\n"));
        assert_eq!(with("[dependencies]\ntokio = \"1\""), 1);
        assert_eq!(with("[dependencies]\ntokio-stream = \"1\""), 1);
        assert_eq!(with("[dev-dependencies]\nglommio = \"0.9\""), 1);
        assert_eq!(with("[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\""), 1);
        assert_eq!(with("[dependencies]\nthiserror = \"2\""), 0);
    }

    #[test]
    fn tests_may_use_what_the_table_says() {
        let manifest = |section: &str| {
            format!(
                "[package]\nname = \"nvme-target\"\n[lints]\nworkspace = true\n\
                 [{section}]\nengine-device.workspace = true\n"
            )
        };
        assert_eq!(count(&manifest("dev-dependencies")), 0);
        assert_eq!(count(&manifest("dependencies")), 1);
    }

    #[test]
    fn lints_and_a_place_in_the_table_are_required() {
        assert_eq!(count("[package]\nname = \"engine-base\"\n"), 1);
        assert_eq!(count("[package]\nname = \"unknown\"\n[lints]\nworkspace = true\n"), 1);
        let own = "[package]\nname = \"engine-base\"\n[lints.rust]\nunsafe_code = \"deny\"\n";
        assert_eq!(count(own), 0);
        assert_eq!(count("[workspace]\nmembers = []\n"), 0);
        assert_eq!(count("not toml"), 1);
    }
}
