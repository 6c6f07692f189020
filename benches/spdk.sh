#!/usr/bin/env bash
# Our target against SPDK's nvmf_tgt: the same initiator (spdk_nvme_perf), the same kind of backing
# file, loopback, alternating. Called by benches/run.sh with SPDK's programs on PATH.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"
# shellcheck source=scripts/pool.sh
source "$root/scripts/pool.sh"
cd "$root"

rounds=${ROUNDS:-3}
seconds_each=${SECONDS_EACH:-3}
nqn=nqn.2014-08.org.nvmexpress:uuid:5eed0000-0000-4000-8000-00000000be01
rpc=${SPDK_DIR:+$SPDK_DIR/scripts/}rpc.py
have "$rpc" || die "SPDK's rpc.py was not found (set SPDK_DIR)"
[ "$(id -u)" = 0 ] || die "SPDK needs root"

work=$(mktemp -d -p "$(target_dir)")
spdk_pid=
clean_up() {
    pool_end
    if [ -n "$spdk_pid" ]; then end_process "$spdk_pid"; fi
    rm -rf "$work"
}
trap clean_up EXIT

cargo build --release -p service-daemon -p service-cli
pool_format "$work/pool" 1 4G
pool_start
pool_volume disk 2G
pool_export "$nqn" disk

truncate -s 2G "$work/spdk.img"
mapfile -t ports < <(free_ports 1)
nvmf_tgt -m 0x1 -r "$work/spdk.sock" >"$work/spdk.log" 2>&1 &
spdk_pid=$!
for ((i = 0; i < 100; i++)); do
    if "$rpc" -s "$work/spdk.sock" spdk_get_version >/dev/null 2>&1; then break; fi
    sleep 0.1
done
spdk() { "$rpc" -s "$work/spdk.sock" "$@" >/dev/null; }
spdk bdev_aio_create "$work/spdk.img" disk 4096
spdk nvmf_create_transport -t TCP
spdk nvmf_create_subsystem "$nqn" -a -m 8
spdk nvmf_subsystem_add_ns "$nqn" disk
spdk nvmf_subsystem_add_listener "$nqn" -t TCP -f ipv4 -a 127.0.0.1 -s "${ports[0]}"

# perf PORT PATTERN BYTES DEPTH: operations per second
perf() {
    spdk_nvme_perf -c 0x2 -q "$4" -o "$3" -w "$2" -t "$seconds_each" \
        -r "trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:$1 subnqn:$nqn" 2>/dev/null |
        awk '/^Total/ { print int($3) }'
}

median() { sort -n | awk '{ n[NR] = $1 } END { printf "%d (%d..%d)", n[int((NR + 1) / 2)], n[1], n[NR] }'; }

# Every block is written once: neither side may serve holes.
for port in "$pool_nvme_port" "${ports[0]}"; do
    perf "$port" write 131072 16 >/dev/null
done
say "NVMe/TCP over loopback, operations per second: A cairnd, B nvmf_tgt; median (min..max)"
while read -r pattern bytes depth; do
    ours="" theirs=""
    for ((round = 0; round < rounds; round++)); do
        ours+="$(perf "$pool_nvme_port" "$pattern" "$bytes" "$depth")"$'\n'
        theirs+="$(perf "${ports[0]}" "$pattern" "$bytes" "$depth")"$'\n'
    done
    printf '%-10s %7s QD%-4s %-30s %s\n' "$pattern" "$bytes" "$depth" \
        "$(printf %s "$ours" | median)" "$(printf %s "$theirs" | median)"
done <<PATTERNS
randread 4096 1
randread 4096 32
randread 4096 128
randwrite 4096 1
randwrite 4096 32
randwrite 4096 128
read 131072 16
write 131072 16
PATTERNS
