#!/usr/bin/env bash
# The engine in process against file systems of the kernel: benches/filesystems.sh, as root.
#   WORK=DIR           where the backing files lie, DIR on tmpfs or a disk (default /dev/shm/cairn-bench)
#   SIZE=2G            of each backing file      ROUNDS=3     SECONDS_EACH=2    time of one run
#   FILESYSTEMS="raw btrfs xfs ext4"   raw: the backing file itself
# Kernel file systems lie on loop devices with direct I/O; fio works on one file of SIZE / 2 with O_DIRECT and
# io_uring. Cairn works on a volume that takes half of its pool. All are aged by random overwrites first.
# Runs alternate; medians of operations per second are printed, and the ratio ours / theirs.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"
cd "$root"

work=${WORK:-/dev/shm/cairn-bench}
size=${SIZE:-2G}
rounds=${ROUNDS:-3}
seconds_each=${SECONDS_EACH:-2}
read -r -a filesystems <<<"${FILESYSTEMS:-raw btrfs xfs ext4}"
files=10000

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

mounted=()
for name in "${filesystems[@]}"; do
    mkdir -p "$work/$name.mnt"
    [ "$name" != raw ] || continue
    mounted+=("$name")
    truncate --size="$bytes" "$work/$name.img"
    loops[$name]=$(losetup --find --show --direct-io=on "$work/$name.img")
    "mkfs.$name" "${loops[$name]}" >/dev/null 2>&1 || die "mkfs.$name failed"
    mount "${loops[$name]}" "$work/$name.mnt"
done
truncate --size="$bytes" "$work/cairn.img"

# fio_on NAME PATTERN BLOCK_KIB DEPTH SECONDS [OPTION...]: operations per second
fio_on() {
    local name=$1 pattern=$2 block=$3 depth=$4 seconds=$5
    shift 5
    fio --name=bench --filename="$work/$name.mnt/data" --size="$((bytes / 2))" --rw="$pattern" \
        --bs="${block}k" --iodepth="$depth" --ioengine=io_uring --direct=1 --time_based \
        --runtime="$seconds" --randrepeat=0 --norandommap --output-format=json "$@" |
        jq '.jobs[0] | (.read.iops + .write.iops) | round'
}

# ours PATTERN BLOCK_KIB DEPTH SECONDS [OPTION...]: operations per second
ours() {
    local pattern=$1 block=$2 depth=$3 seconds=$4
    shift 4
    "$benches" --subject engine --file "$work/cairn.img" --fill-percent 50 --pattern "$pattern" --block-kib "$block" \
        --depth "$depth" --seconds "$seconds" --seed "$RANDOM" "$@" | jq .iops
}

say "machine:  $(awk -F ': ' '/model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) processors, \
Linux $(uname -r), backing files on $(stat --file-system --format=%T "$work")"
say "commit:   $(git rev-parse --short HEAD)"
say "command:  SIZE=$size ROUNDS=$rounds SECONDS_EACH=$seconds_each benches/filesystems.sh"

say "laying out and ageing by random overwrites"
for name in "${filesystems[@]}"; do
    fio --name=lay --filename="$work/$name.mnt/data" --size="$((bytes / 2))" --rw=write --bs=1M \
        --ioengine=io_uring --iodepth=8 --direct=1 --output-format=terse >/dev/null
    fio_on "$name" randwrite 4 32 5 >/dev/null
done
ours randwrite 4 32 5 >/dev/null

median() { sort -n | awk '{ n[NR] = $1 } END { print n[int((NR + 1) / 2)] }'; }

# row LABEL NAME...: the medians of $work/NAME.runs, ours first
row() {
    local name a b line ratio
    a=$(median <"$work/cairn.runs")
    line=$(printf '%-28s cairn %8s' "$1" "$a")
    for name in "${@:2}"; do
        b=$(median <"$work/$name.runs")
        ratio=$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", b ? a / b : 0 }')
        line+=$(printf '   %s %8s (%s)' "$name" "$b" "$ratio")
    done
    say "$line"
    rm -f "$work"/*.runs
}

# compare LABEL PATTERN BLOCK DEPTH [FLUSH_EVERY]
compare() {
    local label=$1 pattern=$2 block=$3 depth=$4 every=${5:-0} round name theirs=() own=()
    if [ "$every" != 0 ]; then
        theirs=(--fdatasync="$every")
        own=(--flush-every "$every")
    fi
    for ((round = 0; round < rounds; round++)); do
        ours "$pattern" "$block" "$depth" "$seconds_each" "${own[@]}" >>"$work/cairn.runs"
        for name in "${filesystems[@]}"; do
            fio_on "$name" "$pattern" "$block" "$depth" "$seconds_each" "${theirs[@]}" >>"$work/$name.runs"
        done
    done
    row "$label" "${filesystems[@]}"
}

compare "randread 4K QD1" randread 4 1
compare "randread 4K QD32" randread 4 32
compare "randwrite 4K QD1" randwrite 4 1
compare "randwrite 4K QD32" randwrite 4 32
compare "randwrite 4K, flush each" randwrite 4 1 1
compare "randwrite 4K, flush per 32" randwrite 4 1 32
compare "read 128K QD16" read 128 16
compare "write 128K QD16" write 128 16

# names DEPTH_OF_OURS
names() {
    local depth=$1 round name kind
    for ((round = 0; round < rounds; round++)); do
        "$benches" --subject engine-files --file "$work/cairn.img" --operations "$files" --depth "$depth" \
            >>"$work/cairn.json"
        for name in "${mounted[@]}"; do
            "$benches" --subject kernel-files --file "$work/$name.mnt" --operations "$files" >>"$work/$name.json"
        done
    done
    for kind in create stat unlink; do
        for name in cairn "${mounted[@]}"; do
            jq ".$kind" "$work/$name.json" >"$work/$name.runs"
        done
        row "$kind, ours at depth $depth" "${mounted[@]}"
    done
    rm -f "$work"/*.json
}
names 1
names 32

# The backing files as they are at this moment, while writes go on, are what a crash leaves.
say "seconds to open or mount after a crash:"
ours randwrite 4 32 2 --crash >/dev/null
say "  cairn  $("$benches" --subject engine-open --file "$work/cairn.img" | jq .seconds)"
for name in "${mounted[@]}"; do
    fio_on "$name" randwrite 4 32 2 >/dev/null
    cp --sparse=always "$work/$name.img" "$work/crashed.img"
    mkdir -p "$work/crashed.mnt"
    loop=$(losetup --find --show --direct-io=on "$work/crashed.img")
    start=$(date +%s.%N)
    # Another file system with the same UUID is mounted: each has its word for allowing that.
    option=$([ "$name" = xfs ] && echo nouuid || echo defaults)
    if mount -o "$option" "$loop" "$work/crashed.mnt" 2>/dev/null; then
        say "  $name  $(awk -v a="$start" -v b="$(date +%s.%N)" 'BEGIN { printf "%.4f", b - a }')"
        umount "$work/crashed.mnt"
    else
        say "  $name  not mounted: two copies of one are not taken at a time"
    fi
    losetup --detach "$loop"
    rm -f "$work/crashed.img"
done
