#!/usr/bin/env bash
# Every interleaving of the lock-free code, with loom, in a target directory of its own because the
# whole dependency tree is built with another flag.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

export CARGO_TARGET_DIR
CARGO_TARGET_DIR="$(target_dir)/loom"
export RUSTFLAGS="--cfg loom ${RUSTFLAGS:-}"
# loom explores up to this many preemptions per run: enough for every bug it has been shown to find
# in code of this size, and minutes instead of days.
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-3}"

total=0
for package in engine-shard engine-store; do
    log=$(mktemp)
    if ! cargo test --profile sim -p "$package" --lib loom 2>&1 | tee "$log"; then
        count 0 1
        rm -f "$log"
        exit 1
    fi
    ran=$(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$log")
    rm -f "$log"
    say "$package: $ran loom tests"
    total=$((total + ran))
done
count "$total" 0
[ "$total" -gt 0 ] || die "no loom test ran"
