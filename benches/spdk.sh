#!/usr/bin/env bash
# Our target against SPDK's nvmf_tgt: the same initiator (spdk_nvme_perf), the same kind of backing
# file, loopback. Called by benches/run.sh, or by itself; what it tells is in docs/benchmarks.md.
#   SPDK_DIR=PATH      a built tree of SPDK; without it, nvmf_tgt, spdk_nvme_perf and rpc.py from PATH
#   CAIRN_BIN=PATH     directory of cairnd and cairn; without it, they are built
#   ROUNDS=3           A B rounds     SECONDS_EACH=3   time of one run     PERF_OPTIONS=   more for perf
# Both targets run all the time, each alone while it is measured: the other is stopped (SIGSTOP).
# Processor 0 is the target's, processor 1 the initiator's, which polls.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"
# shellcheck source=scripts/pool.sh
source "$root/scripts/pool.sh"
cd "$root"

rounds=${ROUNDS:-3}
seconds_each=${SECONDS_EACH:-3}
read -ra perf_options <<<"${PERF_OPTIONS:-}"
nqn=nqn.2014-08.org.nvmexpress:uuid:5eed0000-0000-4000-8000-00000000be01
host_nqn=nqn.2014-08.org.nvmexpress:uuid:5eed0000-0000-4000-8000-00000000be02
volume_bytes=$((2 << 30))
hugepages_needed=640
rpc=rpc.py
if [ -n "${SPDK_DIR:-}" ]; then
    export PATH="$SPDK_DIR/build/bin:$PATH"
    export LD_LIBRARY_PATH="$SPDK_DIR/build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    rpc=$SPDK_DIR/scripts/rpc.py
fi
for program in nvmf_tgt spdk_nvme_perf "$rpc" jq taskset; do
    have "$program" || die "$program was not found (set SPDK_DIR for SPDK's programs)"
done
[ "$(id -u)" = 0 ] || die "SPDK needs root"
[ "$(nproc)" -ge 2 ] || die "two processors are needed: one for the target, one for the initiator"

work=$(mktemp -d -p "$(target_dir)")
spdk_pid=
hugepages=/proc/sys/vm/nr_hugepages
hugepages_before=$(cat "$hugepages")
clean_up() {
    # A stopped process ends only once it goes on.
    kill -CONT ${pool_pid:+"$pool_pid"} ${spdk_pid:+"$spdk_pid"} 2>/dev/null || true
    pool_end
    if [ -n "$spdk_pid" ]; then end_process "$spdk_pid"; fi
    if mountpoint -q "$work/hugepages"; then umount "$work/hugepages"; fi
    echo "$hugepages_before" >"$hugepages"
    rm -rf "$work"
}
trap clean_up EXIT

if [ "$hugepages_before" -lt "$hugepages_needed" ]; then
    echo "$hugepages_needed" >"$hugepages"
    [ "$(cat "$hugepages")" -ge "$hugepages_needed" ] || die "no room for $hugepages_needed huge pages"
fi
if ! grep -q " hugetlbfs " /proc/mounts; then
    mkdir "$work/hugepages"
    mount -t hugetlbfs none "$work/hugepages"
fi
if [ -z "${CAIRN_BIN:-}" ]; then
    cargo build --release -p service-daemon -p service-cli
fi
pool_format "$work/pool" 1 4G
pool_start
taskset --all-tasks --cpu-list --pid 0 "$pool_pid" >/dev/null
pool_volume disk "$volume_bytes"
pool_export "$nqn" disk

truncate -s "$volume_bytes" "$work/spdk.img"
mapfile -t ports < <(free_ports 1)
nvmf_tgt -m 0x1 -s 512 -r "$work/spdk.sock" >"$work/spdk.log" 2>&1 &
spdk_pid=$!
# spdk METHOD ARGUMENT...: a call of SPDK's target; what it says is shown when it fails
spdk() {
    "$rpc" -s "$work/spdk.sock" "$@" >"$work/rpc.log" 2>&1 || {
        tail -n 20 "$work/rpc.log" "$work/spdk.log" >&2
        die "SPDK refused: $*"
    }
}
for ((i = 0; i < 100; i++)); do
    kill -0 "$spdk_pid" 2>/dev/null || break
    if "$rpc" -s "$work/spdk.sock" spdk_get_version >/dev/null 2>&1; then break; fi
    sleep 0.1
done
spdk spdk_get_version
spdk bdev_aio_create "$work/spdk.img" disk 4096
spdk nvmf_create_transport -t TCP
spdk nvmf_create_subsystem "$nqn" -a -m 8
spdk nvmf_subsystem_add_ns "$nqn" disk
spdk nvmf_subsystem_add_listener "$nqn" -t TCP -f ipv4 -a 127.0.0.1 -s "${ports[0]}"

# perf SIDE PATTERN BYTES DEPTH SECONDS OPTION...: operations per second of one side, A ours, B SPDK's,
# while the other is stopped
perf() {
    local port=$pool_nvme_port other=$spdk_pid result status=0
    if [ "$1" = B ]; then port=${ports[0]} other=$pool_pid; fi
    kill -STOP "$other"
    spdk_nvme_perf -c 0x2 -s 256 -w "$2" -o "$3" -q "$4" -t "$5" "${@:6}" \
        "${perf_options[@]}" \
        -r "trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:$port subnqn:$nqn hostnqn:$host_nqn" \
        </dev/null >"$work/perf.log" 2>&1 || status=$?
    kill -CONT "$other"
    result=$(awk '/^Total/ { print int($3); exit }' "$work/perf.log")
    if [ "$status" != 0 ] || [ "${result:-0}" = 0 ] || grep -q 'with error' "$work/perf.log"; then
        cat "$work/perf.log" >&2
        die "spdk_nvme_perf failed on side $1: $2 of $3 bytes (status $status)"
    fi
    say "$result"
}

# Every block is written once: neither side may serve holes.
for side in A B; do
    perf "$side" write 131072 16 120 -d $((volume_bytes / 131072)) >/dev/null
done
[ "$(pool_data_bytes)" -ge "$volume_bytes" ] || die "the pool's volume has holes"
[ $(($(stat -c '%b * %B' "$work/spdk.img"))) -ge "$volume_bytes" ] || die "SPDK's file has holes"

# median, lowest and highest of the numbers on standard input
spread() { sort -n | awk '{ n[NR] = $1 } END { printf "%d %d %d\n", n[int((NR + 1) / 2)], n[1], n[NR] }'; }

# compare STATE PATTERN BYTES DEPTH: a row of the table; who goes first alternates
compare() {
    local ours="" theirs="" round side order result a a_low a_high b b_low b_high
    for ((round = 0; round < rounds; round++)); do
        order="A B"
        if ((round % 2)); then order="B A"; fi
        for side in $order; do
            result=$(perf "$side" "$2" "$3" "$4" "$seconds_each")
            if [ "$side" = A ]; then ours+=$result$'\n'; else theirs+=$result$'\n'; fi
        done
    done
    read -r a a_low a_high < <(printf %s "$ours" | spread)
    read -r b b_low b_high < <(printf %s "$theirs" | spread)
    printf '%-6s %-10s %4sK QD%-4s %8s (%s..%s)  %8s (%s..%s)  %s\n' "$1" "$2" $(($3 / 1024)) "$4" \
        "$a" "$a_low" "$a_high" "$b" "$b_low" "$b_high" \
        "$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", a / b }')"
}

say "SPDK:     $("$rpc" -s "$work/spdk.sock" spdk_get_version | jq -r .version), bdev_aio on a file of 2 GiB"
say "files:    $(findmnt -n -o FSTYPE,SOURCE -T "$work" | tr -s ' ')"
say "command:  ROUNDS=$rounds SECONDS_EACH=$seconds_each PERF_OPTIONS='${perf_options[*]}' benches/spdk.sh"
say "NVMe/TCP over loopback, operations per second: A cairnd, B nvmf_tgt; median (min..max); A/B"
while read -r state pattern bytes depth; do
    compare "$state" "$pattern" "$bytes" "$depth"
done <<PATTERNS
fresh read 131072 16
fresh write 131072 16
fresh randread 4096 1
fresh randread 4096 32
fresh randread 4096 128
fresh randwrite 4096 1
fresh randwrite 4096 32
fresh randwrite 4096 128
aged read 131072 16
aged write 131072 16
PATTERNS
