#!/usr/bin/env bash
# Licences, advisories and sources of the crates we depend on (deny.toml), where cargo-deny is there.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"
have cargo-deny || skip "cargo-deny is not installed"
# Advisories need a database from the network; they are a job for people and schedules, not the gate.
cargo deny --offline check bans licenses sources
