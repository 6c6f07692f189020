#!/usr/bin/env bash
# A short run of every fuzz target.   SECONDS_EACH=20   how long each
# Installs cargo-fuzz where it is missing. The instrumentation needs options that rustc keeps for nightly;
# RUSTC_BOOTSTRAP lets the toolchain of the project take them, so that no other is needed.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

[ -d fuzz ] || die "there is no fuzz directory"
if ! have cargo-fuzz; then
    say "installing cargo-fuzz"
    env -u RUSTFLAGS cargo install --locked cargo-fuzz
fi
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH" RUSTC_BOOTSTRAP=1
# The lints of the workspace are checked elsewhere; cargo-fuzz brings flags of its own.
unset RUSTFLAGS

seconds_each=${SECONDS_EACH:-20}
failed=0
mapfile -t targets < <(basename -s .rs -a fuzz/fuzz_targets/*.rs)
[ "${#targets[@]}" -gt 0 ] || die "no fuzz target found"
(cd fuzz && cargo run --quiet --bin write_corpus -- corpus/connection_stream)
for target in "${targets[@]}"; do
    say "-- $target, $seconds_each s"
    if cargo fuzz run "$target" -- -max_total_time="$seconds_each" -rss_limit_mb=2048; then
        count 1 0
    else
        count 0 1
        failed=$((failed + 1))
    fi
done
[ "$failed" -eq 0 ] || die "$failed fuzz targets found something; see fuzz/artifacts"
