#!/usr/bin/env bash
# Every interleaving of the lock-free code, with loom, in a target directory of its own because the
# whole dependency tree is built with another flag.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

target=$(target_dir)/loom
export CARGO_TARGET_DIR=$target
export RUSTFLAGS="--cfg loom ${RUSTFLAGS:-}"
# Fast enough without what takes long to build.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=none

total=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for directory in engine/shard engine/store nvme/target; do
    package=${directory/\//-}
    if [ -e "$directory/tests/loom.rs" ]; then
        which=(--test loom)
    elif grep -rqE 'cfg\((all\(.*)?loom' "$directory/src"; then
        which=(--lib loom)
    else
        say "$package has no loom tests"
        continue
    fi
    if ! cargo test --release -p "$package" "${which[@]}" 2>&1 | tee "$log"; then
        count 0 1
        exit 1
    fi
    ran=$(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$log")
    say "$package: $ran loom tests"
    total=$((total + ran))
done
count "$total" 0
[ "$total" -gt 0 ] || die "no loom test ran"
