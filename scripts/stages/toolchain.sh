#!/usr/bin/env bash
# Says what the run uses, and installs the packages that the other stages need.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

scripts/packages.sh build guest
uname -sr
say "$(nproc) processors, $(awk '/MemTotal/ { printf "%.1f", $2 / 1048576 }' /proc/meminfo) GiB memory"
cargo --version
rustc --version
cc --version | head -n 1
for tool in cargo-nextest cargo-deny shellcheck; do
    if have "$tool"; then say "$tool: found"; else say "$tool: not installed (optional)"; fi
done
