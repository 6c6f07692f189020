#!/usr/bin/env bash
# A short run of every fuzz target.   SECONDS_EACH=20   how long each
# The targets need the nightly toolchain and cargo-fuzz. Without them this stage is skipped; the same
# harnesses run on pseudo-random input as ordinary tests in the unit stage, on every machine.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

[ -d fuzz ] || die "there is no fuzz directory"
have cargo-fuzz || skip "cargo-fuzz is not installed (the harnesses ran as tests in the unit stage)"
cargo +nightly --version >/dev/null 2>&1 ||
    skip "no nightly toolchain (the harnesses ran as tests in the unit stage)"

seconds_each=${SECONDS_EACH:-20}
# The lints of a nightly compiler are not ours to keep.
unset RUSTFLAGS
failed=0
mapfile -t targets < <(cargo +nightly fuzz list)
[ "${#targets[@]}" -gt 0 ] || die "no fuzz target found"
for target in "${targets[@]}"; do
    say "-- $target, $seconds_each s"
    if cargo +nightly fuzz run "$target" -- -max_total_time="$seconds_each" -rss_limit_mb=2048; then
        count 1 0
    else
        count 0 1
        failed=$((failed + 1))
    fi
done
[ "$failed" -eq 0 ] || die "$failed fuzz targets found something; see fuzz/artifacts"
