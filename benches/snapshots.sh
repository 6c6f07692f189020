#!/usr/bin/env bash
# Overwrites after a snapshot, ours and btrfs's: benches/snapshots.sh, as root.
#   WORK=DIR      where the backing files lie, DIR on tmpfs or a disk (default /dev/shm/cairn-snapshots)
#   SIZE=6G       of each backing file      ROUNDS=5     SECONDS_EACH=2    time of one run
# 4 KiB random writes, 32 in flight, on a fifth of a pool (so that there is room for what a snapshot keeps), aged by
# random overwrites: without a snapshot, and right after one was made of what is written to (of btrfs a read-only
# snapshot of the subvolume). The snapshot is deleted, and what that leaves to do is done, before the next run. Runs
# alternate; medians of operations per second, and the ratio with / without, are printed.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"
cd "$root"

work=${WORK:-/dev/shm/cairn-snapshots}
size=${SIZE:-6G}
rounds=${ROUNDS:-5}
seconds_each=${SECONDS_EACH:-2}

[ "$(id -u)" = 0 ] || die "mounting needs root"
scripts/packages.sh bench filesystems
cargo build --release -p benches
benches=$(target_dir)/release/benches
bytes=$(numfmt --from=iec "$size")

loop=""
cleanup() {
    mountpoint -q "$work/btrfs.mnt" && umount "$work/btrfs.mnt"
    [ -z "$loop" ] || losetup --detach "$loop" || true
    rm -rf "$work"
}
trap cleanup EXIT
mkdir -p "$work/btrfs.mnt"
truncate --size="$bytes" "$work/btrfs.img" "$work/cairn.img"
loop=$(losetup --find --show --direct-io=on "$work/btrfs.img")
mkfs.btrfs "$loop" >/dev/null 2>&1 || die "mkfs.btrfs failed"
mount "$loop" "$work/btrfs.mnt"
btrfs subvolume create "$work/btrfs.mnt/live" >/dev/null

# btrfs_run SECONDS: operations per second
btrfs_run() {
    fio --name=bench --filename="$work/btrfs.mnt/live/data" --size="$((bytes / 5))" --rw=randwrite --bs=4k \
        --iodepth=32 --ioengine=io_uring --direct=1 --time_based --runtime="$1" --randrepeat=0 --norandommap \
        --output-format=json | jq '.jobs[0].write.iops | round'
}

# cairn_run SECONDS [OPTION...]: operations per second
cairn_run() {
    "$benches" --subject engine --file "$work/cairn.img" --fill-percent 20 --pattern randwrite --depth 32 \
        --seconds "$1" --seed "$RANDOM" "${@:2}" | jq .iops
}

say "machine:  $(awk -F ': ' '/model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) processors, \
Linux $(uname -r), backing files on $(stat --file-system --format=%T "$work")"
say "commit:   $(git rev-parse --short HEAD)"
say "command:  SIZE=$size ROUNDS=$rounds SECONDS_EACH=$seconds_each benches/snapshots.sh"
say "laying out and ageing by random overwrites"
fio --name=lay --filename="$work/btrfs.mnt/live/data" --size="$((bytes / 5))" --rw=write --bs=1M \
    --ioengine=io_uring --iodepth=8 --direct=1 --output-format=terse >/dev/null
btrfs_run 5 >/dev/null
cairn_run 5 >/dev/null

for ((round = 0; round < rounds; round++)); do
    cairn_run "$seconds_each" >>"$work/cairn.without"
    btrfs_run "$seconds_each" >>"$work/btrfs.without"
    cairn_run "$seconds_each" --snapshot >>"$work/cairn.with"
    btrfs subvolume snapshot -r "$work/btrfs.mnt/live" "$work/btrfs.mnt/kept" >/dev/null
    btrfs_run "$seconds_each" >>"$work/btrfs.with"
    btrfs subvolume delete "$work/btrfs.mnt/kept" >/dev/null
    btrfs subvolume sync "$work/btrfs.mnt" >/dev/null
done

median() { sort -n | awk '{ n[NR] = $1 } END { print n[int((NR + 1) / 2)] }'; }
for name in cairn btrfs; do
    without=$(median <"$work/$name.without")
    with=$(median <"$work/$name.with")
    say "$name: without $without, after a snapshot $with" \
        "($(awk -v a="$with" -v b="$without" 'BEGIN { printf "%.2f", b ? a / b : 0 }'))"
done
