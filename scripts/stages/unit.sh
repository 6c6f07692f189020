#!/usr/bin/env bash
# The tests of the workspace: with cargo-nextest where it is installed, else with cargo test.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
if have cargo-nextest; then
    cargo nextest run --workspace --no-fail-fast 2>&1 | tee "$log" || status=1
    # nextest runs no documentation tests.
    cargo test --workspace --doc --no-fail-fast 2>&1 | tee -a "$log" || status=1
else
    cargo test --workspace --no-fail-fast 2>&1 | tee "$log" || status=1
fi

# "Summary [ 1.2s] 9 tests run: 8 passed, 1 failed, 0 skipped" of nextest; "test result: ok. 8
# passed; 1 failed; ..." of cargo test, once per test binary.
read -r passed failed < <(awk '
    /^ *Summary \[/ || /^test result:/ {
        for (i = 2; i <= NF; i++) {
            word = $i; sub(/[,;.]$/, "", word)
            if (word == "passed") passed += $(i - 1)
            if (word == "failed") failed += $(i - 1)
            if (word == "timed") failed += $(i - 1)
        }
    }
    END { printf "%d %d\n", passed, failed }' "$log")
say ""
say "$passed passed, $failed failed"
count "$passed" "$failed"
[ "$passed" -gt 0 ] || die "no test ran"
exit "$status"
