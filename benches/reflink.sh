#!/usr/bin/env bash
# Copies of a file by reference, ours, btrfs's and XFS's: benches/reflink.sh, as root.
#   WORK=DIR      where the backing files lie, DIR on tmpfs or a disk (default /dev/shm/cairn-reflink)
#   SIZE=4G       of each backing file      FILE_MIB=2048   of the file      ROUNDS=5
#   PERMILLE=20   4 KiB pieces of it that are overwritten at random first, of a thousand: that makes extents
# The file is written in sequence, some of it is overwritten, it is copied twice (cp --reflink=always), and both copies
# are removed. Runs alternate; medians of milliseconds are printed, of the kernel's with the start of cp, and the
# extents of btrfs's and XFS's file (filefrag). Ours is in process, on one thread; an answer outlives the process.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"
cd "$root"

work=${WORK:-/dev/shm/cairn-reflink}
size=${SIZE:-4G}
mib=${FILE_MIB:-2048}
rounds=${ROUNDS:-5}
permille=${PERMILLE:-20}

[ "$(id -u)" = 0 ] || die "mounting needs root"
scripts/packages.sh bench filesystems
cargo build --release -p benches
benches=$(target_dir)/release/benches
bytes=$(numfmt --from=iec "$size")

declare -A loops
cleanup() {
    local name
    for name in "${!loops[@]}"; do
        mountpoint -q "$work/$name.mnt" && umount "$work/$name.mnt"
        losetup --detach "${loops[$name]}" || true
    done
    rm -rf "$work"
}
trap cleanup EXIT
mkdir -p "$work"
truncate --size="$bytes" "$work/cairn.img"
for name in btrfs xfs; do
    mkdir -p "$work/$name.mnt"
    truncate --size="$bytes" "$work/$name.img"
    loops[$name]=$(losetup --find --show --direct-io=on "$work/$name.img")
    "mkfs.$name" "${loops[$name]}" >/dev/null 2>&1 || die "mkfs.$name failed"
    mount "${loops[$name]}" "$work/$name.mnt"
done

# milliseconds COMMAND...: how long it takes
milliseconds() {
    local began
    began=$(date +%s%N)
    "$@"
    echo "scale=2; ($(date +%s%N) - $began) / 1000000" | bc
}

# kernel NAME: one run in its directory
kernel() {
    local directory=$work/$1.mnt
    rm -f "$directory"/*
    fio --name=lay --filename="$directory/source" --size="${mib}M" --rw=write --bs=1M --ioengine=io_uring --direct=1 \
        --output-format=terse >/dev/null
    if [ "$permille" -gt 0 ]; then
        fio --name=cut --filename="$directory/source" --size="${mib}M" --rw=randwrite --bs=4k --ioengine=io_uring \
            --direct=1 --iodepth=32 --randrepeat=0 --number_ios=$((mib * 256 * permille / 1000)) \
            --output-format=terse >/dev/null
    fi
    sync "$directory/source"
    filefrag "$directory/source" | awk '{ print $(NF - 2) }' >>"$work/$1.extents"
    milliseconds cp --reflink=always "$directory/source" "$directory/first" >>"$work/$1.first"
    milliseconds cp --reflink=always "$directory/source" "$directory/second" >>"$work/$1.second"
    milliseconds rm "$directory/second" "$directory/first" >>"$work/$1.remove"
}

say "machine:  $(awk -F ': ' '/model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) processors, \
Linux $(uname -r), backing files on $(stat --file-system --format=%T "$work")"
say "commit:   $(git rev-parse --short HEAD)"
say "command:  SIZE=$size FILE_MIB=$mib PERMILLE=$permille ROUNDS=$rounds benches/reflink.sh"
for ((round = 0; round < rounds; round++)); do
    told=$("$benches" --subject engine-copies --file "$work/cairn.img" --file-mib "$mib" \
        --overwritten-permille "$permille" --seed "$RANDOM")
    for what in first second remove; do
        jq ".${what}_ms" <<<"$told" >>"$work/cairn.$what"
    done
    kernel btrfs
    kernel xfs
done

median() { sort -n | awk '{ n[NR] = $1 } END { print n[int((NR + 1) / 2)] }'; }
for name in cairn btrfs xfs; do
    extents=""
    [ ! -e "$work/$name.extents" ] || extents=", $(median <"$work/$name.extents") extents"
    say "$name: first copy $(median <"$work/$name.first") ms, second $(median <"$work/$name.second") ms," \
        "both removed $(median <"$work/$name.remove") ms$extents"
done
