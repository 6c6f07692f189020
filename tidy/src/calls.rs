//! Banned calls, each with what to write instead.
//!
//! Only code counts: comments and literals are blanked before a rule sees a line.

use crate::Finding;
use crate::tree::SourceFile;

/// Who reads a clock: hosts of the engine, front ends on control threads, programs that measure.
pub const CLOCK_HOSTS: [&str; 10] = [
    "api/grpc/",
    "engine/embed/",
    "engine/shard/",
    "engine/sim/src/main.rs",
    "engine/device/src/file",
    "engine/device/examples/",
    "engine/store/examples/",
    "service/",
    "benches/",
    "tests/crash/",
];

/// Where a ban holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Everywhere, tests too.
    Everywhere,
    /// Outside test code.
    ProductCode,
}

/// A call that must not be made.
struct Ban {
    /// What the code must not contain; matched at the start of a word.
    call: &'static str,
    /// What to write instead.
    instead: &'static str,
    scope: Scope,
    /// Paths it holds for; empty: all.
    within: &'static [&'static str],
    /// Paths it does not hold for.
    except: &'static [&'static str],
}

/// Programs: they print and end as they like.
const PROGRAMS: [&str; 10] = [
    "engine/sim/src/modes.rs",
    "fuzz/",
    "service/",
    "benches/",
    "tests/crash/",
    "tidy/",
    "/main.rs",
    "/bin/",
    "/examples/",
    "build.rs",
];

/// The parts that one seed must reproduce.
const REPRODUCIBLE: [&str; 3] = ["engine/base/", "engine/store/", "engine/sim/"];

const BANS: [Ban; 14] = [
    Ban {
        call: "Instant::now(",
        instead: "take the time from engine_base::runtime; only hosts read a clock",
        scope: Scope::ProductCode,
        within: &[],
        except: &CLOCK_HOSTS,
    },
    Ban {
        call: "SystemTime::now(",
        instead: "take the time from engine_base::runtime; only hosts read a clock",
        scope: Scope::ProductCode,
        within: &[],
        except: &CLOCK_HOSTS,
    },
    Ban {
        call: "thread::sleep(",
        instead: "wait for the event itself; on a core, use the runtime's sleep",
        scope: Scope::Everywhere,
        within: &[],
        // members.rs: the opening thread waits for the lock of a predecessor, before any core runs.
        except: &["benches/", "tests/crash/", "/examples/", "engine/embed/src/members.rs"],
    },
    Ban {
        call: "RandomState",
        instead: "engine_base::hash, whose order a seed reproduces",
        scope: Scope::Everywhere,
        within: &REPRODUCIBLE,
        except: &[],
    },
    Ban {
        call: "HashMap::new(",
        instead: "engine_base::hash::FastMap, or BTreeMap for keys from outside",
        scope: Scope::Everywhere,
        within: &REPRODUCIBLE,
        except: &[],
    },
    Ban {
        call: "HashSet::new(",
        instead: "engine_base::hash::FastSet, or BTreeSet for keys from outside",
        scope: Scope::Everywhere,
        within: &REPRODUCIBLE,
        except: &[],
    },
    Ban {
        call: "collections::HashMap",
        instead: "engine_base::hash::FastMap, or BTreeMap for keys from outside",
        scope: Scope::Everywhere,
        within: &REPRODUCIBLE,
        except: &["engine/base/src/hash.rs"],
    },
    Ban {
        call: "collections::HashSet",
        instead: "engine_base::hash::FastSet, or BTreeSet for keys from outside",
        scope: Scope::Everywhere,
        within: &REPRODUCIBLE,
        except: &["engine/base/src/hash.rs"],
    },
    Ban {
        call: "unwrap()",
        instead: "`?`, or expect() with the fact that makes failure impossible",
        scope: Scope::ProductCode,
        within: &[],
        except: &["/examples/"],
    },
    Ban {
        call: "println!",
        instead: "tracing, or return it: libraries print nothing",
        scope: Scope::ProductCode,
        within: &[],
        except: &PROGRAMS,
    },
    Ban {
        call: "eprintln!",
        instead: "tracing, or return it: libraries print nothing",
        scope: Scope::ProductCode,
        within: &[],
        except: &PROGRAMS,
    },
    Ban {
        call: "process::exit(",
        instead: "return an ExitCode from main, so that destructors run",
        scope: Scope::Everywhere,
        within: &[],
        // lifecycle.rs: threads that hang must not keep a daemon that failed. modes.rs: nor a simulator.
        except: &[
            "/main.rs",
            "fuzz/",
            "service/daemon/src/lifecycle.rs",
            "engine/sim/src/modes.rs",
        ],
    },
    Ban {
        call: "todo!",
        instead: "an error that says what is unsupported",
        scope: Scope::Everywhere,
        within: &[],
        except: &[],
    },
    Ban {
        call: "unimplemented!",
        instead: "an error that says what is unsupported",
        scope: Scope::Everywhere,
        within: &[],
        except: &[],
    },
];

/// Checks one file.
#[must_use]
pub fn check(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ban in BANS.iter().filter(|ban| ban.holds_for(&file.path)) {
        for (number, line, is_test) in file.code_lines() {
            if (ban.scope == Scope::Everywhere || !is_test) && has_word(line, ban.call) {
                let message = format!("`{}`: {}", ban.call, ban.instead);
                findings.push(Finding::new(&file.path, number, message));
            }
        }
    }
    findings.extend(dbg_macro(file));
    findings
}

impl Ban {
    fn holds_for(&self, path: &str) -> bool {
        let is_in = |place: &&str| match place.strip_prefix('/') {
            Some(_) => path.contains(*place),
            None => path.starts_with(*place) || path.ends_with(&format!("/{place}")),
        };
        (self.within.is_empty() || self.within.iter().any(is_in)) && !self.except.iter().any(is_in)
    }
}

/// The debugging macro, named here in two halves so that this file does not trip over clippy's own.
fn dbg_macro(file: &SourceFile) -> Vec<Finding> {
    let name = concat!("db", "g!");
    file.code_lines()
        .filter(|(_, line, _)| has_word(line, name))
        .map(|(number, _, _)| Finding::new(&file.path, number, format!("`{name}` left over")))
        .collect()
}

/// Does `line` contain `call` where a word starts (so that `eprintln!` is not `println!`)?
fn has_word(line: &str, call: &str) -> bool {
    line.match_indices(call).any(|(at, _)| {
        line[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(path: &str, text: &str) -> Vec<String> {
        check(&SourceFile::new(path, text)).into_iter().map(|f| f.message).collect()
    }

    /// Every ban fires on a sample in a place where it holds, and is silent in a comment.
    #[test]
    fn every_ban_fires() {
        for ban in &BANS {
            let path = match ban.within.first() {
                Some(place) => format!("{place}src/x.rs"),
                None => "nvme/target/src/x.rs".to_owned(),
            };
            let sample = format!("fn f() {{ std::{} }}\n", ban.call);
            let found = calls(&path, &sample);
            assert!(
                found.iter().any(|m| m.starts_with(&format!("`{}`", ban.call))),
                "{}",
                ban.call
            );
            assert!(calls(&path, &format!("// {}\n", ban.call)).is_empty(), "{}", ban.call);
        }
        assert_eq!(calls("a/src/x.rs", concat!("fn f() { db", "g!(1); }\n")).len(), 1);
    }

    #[test]
    fn exceptions_hold() {
        let clock = "fn f() { Instant::now(); }\n";
        assert_eq!(calls("engine/store/src/x.rs", clock).len(), 1);
        assert!(calls("service/daemon/src/x.rs", clock).is_empty());
        let print = "fn f() { println!(); }\n";
        assert_eq!(calls("engine/sim/src/lib.rs", print).len(), 1);
        assert!(calls("engine/sim/src/main.rs", print).is_empty());
        let exit = "fn f() { std::process::exit(1) }\n";
        assert_eq!(calls("service/cli/src/run.rs", exit).len(), 1);
        assert!(calls("service/cli/src/main.rs", exit).is_empty());
    }

    #[test]
    fn tests_may_unwrap_but_not_sleep() {
        let sample = "#[cfg(test)]\nmod tests {\n fn f() { a.unwrap(); thread::sleep(b); }\n}\n";
        let found = calls("nvme/target/src/x.rs", sample);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("sleep"));
    }
}
