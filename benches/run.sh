#!/usr/bin/env bash
# Benchmarks against named peers; what is compared and how is in docs/benchmarks.md.
#   BENCH_FILE=PATH    the backing file (made if absent; its content is destroyed)
#   BENCH_SIZE=4G      its size       ROUNDS=3   A B rounds       SECONDS_EACH=3   time of one run
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"
cd "$root"

size=${BENCH_SIZE:-4G}
rounds=${ROUNDS:-3}
seconds_each=${SECONDS_EACH:-3}
file=${BENCH_FILE:-$(target_dir)/bench.img}
subjects="device engine"

scripts/packages.sh bench
cargo build --release -p benches
benches=$(target_dir)/release/benches

# A file with all its blocks written: neither side may measure allocation, or holes.
if [ "$(stat -c %s "$file" 2>/dev/null || echo 0)" != "$(numfmt --from=iec "$size")" ]; then
    say "filling $file ($size)"
    fio --name=fill --filename="$file" --size="$size" --rw=write --bs=1M --ioengine=io_uring \
        --iodepth=8 --direct=1 --end_fsync=1 --output-format=terse >/dev/null
fi

# The engine keeps its pool in a file of its own beside the raw one, of the same size: fio's writes would
# destroy it. The first run makes the pool and fills a volume of seven tenths of it.
if [ "$(stat -c %s "$file.pool" 2>/dev/null || echo 0)" != "$(numfmt --from=iec "$size")" ]; then
    say "filling $file.pool ($size)"
    cp --sparse=never "$file" "$file.pool"
fi

# run_ours SUBJECT PATTERN BLOCK_KIB DEPTH: operations per second
run_ours() {
    local own=$file
    [ "$1" = engine ] && own=$file.pool
    "$benches" --subject "$1" --file "$own" --pattern "$2" --block-kib "$3" --depth "$4" \
        --seconds "$seconds_each" | jq .iops
}

# run_fio PATTERN BLOCK_KIB DEPTH: operations per second
run_fio() {
    fio --name=raw --filename="$file" --rw="$1" --bs="$2k" --iodepth="$3" --ioengine=io_uring \
        --direct=1 --time_based --runtime="$seconds_each" --randrepeat=1 --norandommap \
        --output-format=json | jq '.jobs[0] | (.read.iops + .write.iops) | round'
}

# median, lowest and highest of the numbers on standard input
spread() { sort -n | awk '{ n[NR] = $1 } END { printf "%d %d %d\n", n[int((NR + 1) / 2)], n[1], n[NR] }'; }

machine() {
    say "machine:  $(awk -F ': ' '/model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) processors, \
$(awk '/MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo) GiB, Linux $(uname -r)"
    say "files:    $file on $(findmnt -n -o FSTYPE,SOURCE -T "$file" | tr -s ' ')"
    say "commit:   $(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo ' and changes')"
    say "command:  make bench BENCH_SIZE=$size ROUNDS=$rounds SECONDS_EACH=$seconds_each"
}

compare() {
    local subject=$1 pattern=$2 block=$3 depth=$4 ours="" peers="" round
    for ((round = 0; round < rounds; round++)); do
        ours+="$(run_ours "$subject" "$pattern" "$block" "$depth")"$'\n'
        peers+="$(run_fio "$pattern" "$block" "$depth")"$'\n'
    done
    local a a_low a_high b b_low b_high
    read -r a a_low a_high < <(printf %s "$ours" | spread)
    read -r b b_low b_high < <(printf %s "$peers" | spread)
    printf '%-8s %-10s %4sK QD%-3s %9s (%s..%s)  %9s (%s..%s)  %s\n' "$subject" "$pattern" "$block" \
        "$depth" "$a" "$a_low" "$a_high" "$b" "$b_low" "$b_high" \
        "$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", (b > 0) ? a / b : 0 }')"
}

machine
say ""
say "operations per second: A ours, B fio with io_uring on the same file; median (min..max); A/B"
for subject in $subjects; do
    for depth in 1 32; do
        compare "$subject" randread 4 "$depth"
        compare "$subject" randwrite 4 "$depth"
    done
    compare "$subject" read 128 16
    compare "$subject" write 128 16
done

say ""
spdk=${SPDK_DIR:+$SPDK_DIR/build/bin}
if PATH="${spdk:+$spdk:}$PATH" command -v nvmf_tgt spdk_nvme_perf >/dev/null; then
    PATH="${spdk:+$spdk:}$PATH" exec benches/spdk.sh
fi
say "SPDK was not found, so the target was not compared with it. Build it from source"
say "(https://spdk.io/doc/getting_started.html) and set SPDK_DIR, or put nvmf_tgt and"
say "spdk_nvme_perf on PATH."
