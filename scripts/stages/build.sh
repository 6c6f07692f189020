#!/usr/bin/env bash
# The release build that the guests, the crash test and the README's commands use, without warnings.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"
export RUSTFLAGS="${RUSTFLAGS:--D warnings}"
build_release
