#!/usr/bin/env bash
# What compression costs reads and writes, ours and btrfs's: benches/compression.sh, as root.
#   WORK=DIR      where the backing files lie, DIR on tmpfs or a disk (default /dev/shm/cairn-compression)
#   SIZE=4G       of each backing file      ROUNDS=3     SECONDS_EACH=2    time of one run
#   PERCENT=60    how much of what is written is always the same (fio's buffer_compress_percentage)
# 4 KiB random reads and writes and 128 KiB in sequence, 32 and 16 in flight, on a volume or file of a fifth of the
# backing file, laid out in sequence: with zstd:3 and lz4, and without. btrfs: compress-force. Runs alternate; medians
# of operations per second, and the ratio to the same without compression, are printed. Reads come first, of data as
# it was laid out; writes follow.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"
cd "$root"

work=${WORK:-/dev/shm/cairn-compression}
size=${SIZE:-4G}
rounds=${ROUNDS:-3}
seconds_each=${SECONDS_EACH:-2}
percent=${PERCENT:-60}
ours="none zstd:3 zstd:3/32 zstd:3/128 lz4"
theirs="none zstd:3 lzo"

[ "$(id -u)" = 0 ] || die "mounting needs root"
scripts/packages.sh bench filesystems
cargo build --release -p benches
benches=$(target_dir)/release/benches
bytes=$(numfmt --from=iec "$size")

declare -A loops
cleanup() {
    local name
    for name in "${!loops[@]}"; do
        mountpoint -q "$work/btrfs-$name.mnt" && umount "$work/btrfs-$name.mnt"
        losetup --detach "${loops[$name]}" || true
    done
    rm -rf "$work"
}
trap cleanup EXIT
mkdir -p "$work"

# btrfs_run HOW PATTERN BLOCK_KIB DEPTH: operations per second
btrfs_run() {
    fio --name=bench --filename="$work/btrfs-${1/:/-}.mnt/data" --size="$((bytes / 5))" --rw="$2" --bs="$3k" \
        --iodepth="$4" --ioengine=io_uring --direct=1 --time_based --runtime="$seconds_each" --randrepeat=0 \
        --norandommap --refill_buffers --buffer_compress_percentage="$percent" --output-format=json |
        jq '.jobs[0] | (.read.iops + .write.iops) | round'
}

# cairn_run HOW PATTERN BLOCK_KIB DEPTH: operations per second; HOW may end in /KIB of a frame
cairn_run() {
    local frame=16 how=$1
    [[ $how != */* ]] || { frame=${how#*/}; how=${how%/*}; }
    "$benches" --subject engine --file "$work/cairn-${1//[:\/]/-}.img" --fill-percent 20 --pattern "$2" \
        --block-kib "$3" --depth "$4" --seconds "$seconds_each" --seed "$RANDOM" --compression "$how" \
        --frame-kib "$frame" --compressible-percent "$percent" | jq .iops
}

say "machine:  $(awk -F ': ' '/model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) processors, \
Linux $(uname -r), backing files on $(stat --file-system --format=%T "$work")"
say "commit:   $(git rev-parse --short HEAD)"
say "command:  SIZE=$size ROUNDS=$rounds SECONDS_EACH=$seconds_each PERCENT=$percent benches/compression.sh"
for how in $theirs; do
    name=${how/:/-}
    mkdir -p "$work/btrfs-$name.mnt"
    truncate --size="$bytes" "$work/btrfs-$name.img"
    loops[$name]=$(losetup --find --show --direct-io=on "$work/btrfs-$name.img")
    mkfs.btrfs "${loops[$name]}" >/dev/null 2>&1 || die "mkfs.btrfs failed"
    option=$([ "$how" = none ] && echo defaults || echo "compress-force=$how")
    mount -o "$option" "${loops[$name]}" "$work/btrfs-$name.mnt"
    fio --name=lay --filename="$work/btrfs-$name.mnt/data" --size="$((bytes / 5))" --rw=write --bs=1M \
        --ioengine=io_uring --iodepth=8 --end_fsync=1 --refill_buffers \
        --buffer_compress_percentage="$percent" --output-format=terse >/dev/null
done
for how in $ours; do
    truncate --size="$bytes" "$work/cairn-${how//[:\/]/-}.img"
    say "cairn $how: $(cairn_run "$how" randread 4 1 2>&1 >/dev/null | tail -n 1)"
done

median() { sort -n | awk '{ n[NR] = $1 } END { print n[int((NR + 1) / 2)] }'; }

# compare PATTERN BLOCK_KIB DEPTH
compare() {
    local round how base line side one ratio
    rm -f "$work"/*.runs
    for ((round = 0; round < rounds; round++)); do
        for how in $ours; do cairn_run "$how" "$@" 2>/dev/null >>"$work/cairn-${how//[:\/]/-}.runs"; done
        for how in $theirs; do btrfs_run "$how" "$@" >>"$work/btrfs-${how/:/-}.runs"; done
    done
    for side in cairn btrfs; do
        line=$(printf '%-10s %4sK QD%-3s %-6s' "$1" "$2" "$3" "$side")
        base=$(median <"$work/$side-none.runs")
        for how in $([ "$side" = cairn ] && echo "$ours" || echo "$theirs"); do
            one=$(median <"$work/$side-${how//[:\/]/-}.runs")
            ratio=$(awk -v a="$one" -v b="$base" 'BEGIN { printf "%.2f", b ? a / b : 0 }')
            line+=$(printf '  %s %s (%s)' "$how" "$one" "$ratio")
        done
        say "$line"
    done
}

compare randread 4 1
compare randread 4 32
compare read 128 16
compare randwrite 4 32
compare write 128 16
