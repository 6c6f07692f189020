# shellcheck shell=bash
# purpose: fstrim and blkdiscard give space back to the pool
# limit: 240
# memory: 1G
# daemon: host
#
# "TRIM returns no space" is the complaint this test answers: the pool's own account is read before,
# with the data, and after.

nqn=nqn.2014-08.org.nvmexpress:uuid:5eed0000-0000-4000-8000-0000000000d1

host_start() {
    pool_format "$work/pool" 1 2G
    pool_start
    pool_volume disk 1G
    pool_export "$nqn" disk
    setting PORT "$pool_nvme_port"
}

# host remember NAME: keeps the pool's data bytes.
# host freed FROM TO MIB: TO must have at least so many MiB less than FROM.
host_call() {
    case $1 in
        remember)
            pool_data_bytes >"$work/$2" || return 1
            say "host: $2: $(cat "$work/$2") data bytes"
            ;;
        freed) [ $(($(cat "$work/$2") - $(cat "$work/$3"))) -ge $(($4 << 20)) ] ;;
        *) return 1 ;;
    esac
}

host_finish() {
    pool_check
    pool_stop
}

guest_main() {
    modprobe -a nvme-tcp ext4
    local from device
    from=$(log_position)
    connect 10.0.2.2 "$PORT" "$nqn"
    device=$(wait_for_device "$nqn" 1)
    [ "$(cat /sys/block/"${device##*/}"/queue/discard_max_bytes)" -gt 0 ] ||
        fail "the device offers no discard"
    host remember empty
    step "write 200 MiB into a file system, delete it, trim"
    mkfs.ext4 -q -F -E nodiscard "$device"
    mount "$device" /mnt
    dd if=/dev/urandom of=/mnt/file bs=1M count=200 2>/dev/null
    sync
    nvme flush "$device"
    host remember full
    host freed full empty 190
    rm /mnt/file
    sync
    fstrim -v /mnt
    umount /mnt
    nvme flush "$device"
    host remember trimmed
    host freed full trimmed 190
    step "discard the whole device; it reads as zeroes"
    blkdiscard --force "$device"
    nvme flush "$device"
    host remember discarded
    cmp -n $((64 << 20)) "$device" /dev/zero || fail "discarded blocks are not zero"
    nvme disconnect -n "$nqn"
    expect_clean_kernel_log "$from"
}
