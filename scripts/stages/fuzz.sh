#!/usr/bin/env bash
# A short run of every fuzz target.   SECONDS_EACH=20   how long each
# The targets are built as cargo-fuzz builds them, but without it: its installation takes longer than the run.
# The instrumentation needs options that rustc keeps for nightly; RUSTC_BOOTSTRAP lets the toolchain of the
# project take them, so that no other is needed.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root/fuzz"

export RUSTC_BOOTSTRAP=1
unset RUSTFLAGS
triple=$(rustc -vV | awk '/^host:/ { print $2 }')

# The flags of cargo-fuzz 0.13 (src/project.rs): address sanitizer, and coverage as libFuzzer reads it.
flags=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cllvm-args=-sanitizer-coverage-stack-depth
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0
    --cfg fuzzing
    -Zsanitizer=address
    -Cdebug-assertions
    -Ccodegen-units=1
)
RUSTFLAGS="${flags[*]}" cargo build --release --bins --target "$triple" \
    --config 'profile.release.debug="line-tables-only"'

programs=target/$triple/release
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_odr_violation=0}"
"$programs/write_corpus" corpus/connection_stream
seconds_each=${SECONDS_EACH:-20}
failed=0
mapfile -t targets < <(basename -s .rs -a fuzz_targets/*.rs)
[ "${#targets[@]}" -gt 0 ] || die "no fuzz target found"
for target in "${targets[@]}"; do
    say "-- $target, $seconds_each s"
    mkdir -p "artifacts/$target" "corpus/$target"
    if "$programs/$target" -artifact_prefix="artifacts/$target/" -rss_limit_mb=2048 \
        -max_total_time="$seconds_each" "corpus/$target"; then
        count 1 0
    else
        count 0 1
        failed=$((failed + 1))
    fi
done
[ "$failed" -eq 0 ] || die "$failed fuzz targets found something; see fuzz/artifacts"
