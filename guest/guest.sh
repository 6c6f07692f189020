# shellcheck shell=bash
# Runs in the guest: what the tests share, then the test itself. /test holds this file, test.sh (the
# test) and settings (variables the host hands over).
set -euo pipefail
# shellcheck disable=SC1091
source /test/settings

# Asks the host to do something and waits for its answer: host WORD... Fails when the host's does.
host() {
    local answer
    echo "@host $*"
    IFS= read -r answer
    [ "$answer" = ok ] || fail "the host could not: $* ($answer)"
}

step() { echo "guest: [$(cut -d' ' -f1 /proc/uptime)] $*"; }

fail() {
    echo "guest: FAILED: $*" >&2
    exit 1
}

# Waits until a command succeeds, at most so many seconds: wait_for SECONDS COMMAND...
wait_for() {
    local seconds=$1 start
    shift
    start=$(cut -d. -f1 /proc/uptime)
    until "$@"; do
        [ $(($(cut -d. -f1 /proc/uptime) - start)) -lt "$seconds" ] || return 1
        sleep 0.2
    done
}

# Connects to a subsystem: connect ADDRESS PORT NQN [OPTION...]; device_of then names its devices.
connect() {
    local address=$1 port=$2 nqn=$3
    shift 3
    nvme connect -t tcp -a "$address" -s "$port" -n "$nqn" "$@"
}

# The block device of a namespace of a connected subsystem: device_of NQN NSID
device_of() {
    local block name
    for block in /sys/block/nvme*n*; do
        name=${block##*/}
        # nvme0c0n1 is one path to nvme0n1.
        case $name in nvme*c*n*) continue ;; esac
        if [ "$(cat "$block/device/subsysnqn" 2>/dev/null)" = "$1" ] &&
            [ "$(cat "$block/nsid" 2>/dev/null)" = "$2" ] && [ -b "/dev/$name" ]; then
            echo "/dev/$name"
            return 0
        fi
    done
    return 1
}

# The same, once it is there: namespaces are scanned after connect has returned.
wait_for_device() {
    wait_for 20 device_of "$1" "$2" >/dev/null || fail "no block device for namespace $2 of $1"
    device_of "$1" "$2"
}

# Is every controller connected?
all_live() {
    local state
    for state in /sys/class/nvme/nvme*/state; do
        [ "$(cat "$state")" = live ] || return 1
    done
}

# Lines of the kernel's log that speak of an error, of NVMe or a block device, from a line number on.
# What is left out says that all is well, or is printed at every connect and disconnect.
kernel_errors() {
    dmesg | tail -n "+$1" | grep -E 'nvme|blk_update_request|I/O error|Buffer I/O|EXT4-fs|XFS|BUG|WARNING' |
        grep -E -v 'creating [0-9]+ I/O queues|mapped [0-9/]+|new ctrl|Removing ctrl|\(null\): *$' |
        grep -E -v 'mounted filesystem|unmounting filesystem|Unmounting Filesystem|Mounting V|Ending clean mount' |
        grep -E -v 'SGI XFS|rescanning|Identify.*successfully|adding port|enabling port|creating nvm controller' |
        grep -E -v 'qid_max|multipath|capacity change|Shutdown timeout set' || true
}

expect_clean_kernel_log() {
    local errors
    errors=$(kernel_errors "${1:-1}")
    [ -z "$errors" ] || fail "the kernel's log has errors:
$errors"
}

# Lines the kernel's log has now, plus one: where to look from later.
log_position() { echo $(($(dmesg | wc -l) + 1)); }

# Random writes, read back and verified by fio: fio_verify DEVICE SIZE [OPTION...]
fio_verify() {
    local device=$1 size=$2
    shift 2
    fio --name=verify --filename="$device" --size="$size" --rw=randwrite --bs=4k --iodepth=32 \
        --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 \
        --output-format=terse --minimal "$@" >/tmp/fio.log 2>&1 || {
        tail -n 20 /tmp/fio.log
        fail "fio found a wrong block or an error"
    }
}

# Lets the target copy two ranges, and compares: copy_verify DEVICE. It writes the first 16 MiB.
copy_verify() {
    local device=$1 mib
    # Blocks of a MiB.
    mib=$(((1 << 20) / $(blockdev --getss "$device")))
    dd if=/dev/urandom of="$device" bs=1M count=16 oflag=direct 2>/dev/null
    # Blocks 0-based: 3 MiB from 2 MiB on, and the first MiB, to 8 MiB and behind it.
    nvme copy "$device" --format=0 --sdlba=$((8 * mib)) --slbs="$((2 * mib)),0" \
        --blocks="$((3 * mib - 1)),$((mib - 1))"
    {
        dd if="$device" bs=1M skip=2 count=3 iflag=direct 2>/dev/null
        dd if="$device" bs=1M count=1 iflag=direct 2>/dev/null
    } >/tmp/copy.source
    dd if="$device" of=/tmp/copy.target bs=1M skip=8 count=4 iflag=direct 2>/dev/null
    cmp /tmp/copy.source /tmp/copy.target || fail "a copied range differs from its source"
}

# Makes a file system, copies the tree /usr, checks it, compares it after a new mount: file_system
# KIND DEVICE. It ends unmounted, with the tree in it.
file_system() {
    local kind=$1 device=$2
    step "$kind: make, copy, check, compare"
    case $kind in
        ext4) mkfs.ext4 -q -F "$device" ;;
        xfs) mkfs.xfs -q -f "$device" ;;
    esac
    mount -t "$kind" "$device" /mnt
    cp -a /usr /mnt/usr
    umount /mnt
    check_file_system "$kind" "$device"
    # Nothing of it may come from the page cache.
    echo 3 >/proc/sys/vm/drop_caches
    mount -t "$kind" "$device" /mnt
    diff -r /usr /mnt/usr || fail "the tree read from $kind differs"
    umount /mnt
}

# Checks an unmounted file system: check_file_system KIND DEVICE
check_file_system() {
    case $1 in
        ext4) e2fsck -f -n "$2" ;;
        xfs) xfs_repair -n "$2" >/tmp/xfs_repair.log 2>&1 || {
            cat /tmp/xfs_repair.log
            fail "xfs_repair found damage"
        } ;;
    esac
}

# shellcheck disable=SC1091
source /test/test.sh
guest_main
