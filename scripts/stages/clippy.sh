#!/usr/bin/env bash
# Lints of every target of the workspace; a warning is an error.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"
cargo clippy --workspace --all-targets --quiet -- -D warnings
