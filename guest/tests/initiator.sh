# shellcheck shell=bash
# purpose: Linux as initiator: file systems, fio, and a daemon killed under I/O
# limit: 480
# memory: 2G
# daemon: host
#
# Namespace 1 holds file systems, namespace 2 what fio writes. The daemon is killed with SIGKILL while
# fio writes, without FUA or flush, and started again: the initiator reconnects by itself, sends again
# what was not acknowledged, and in the end every block and every file is what it was.

nqn=nqn.2014-08.org.nvmexpress:uuid:5eed0000-0000-4000-8000-0000000000a1
kills_wanted=3

host_start() {
    pool_format "$work/pool" 2 2G
    pool_start
    pool_volume files 1G
    pool_volume blocks 512M
    pool_export "$nqn" files blocks
    setting PORT "$pool_nvme_port"
}

host_call() {
    case $1 in
        restart) pool_kill && pool_start ;;
        *) return 1 ;;
    esac
}

host_finish() {
    pool_check
    pool_stop
}

guest_main() {
    modprobe -a nvme-tcp ext4 xfs
    local from files blocks
    from=$(log_position)
    step "connect with two I/O queues"
    connect 10.0.2.2 "$PORT" "$nqn" --nr-io-queues=2 --keep-alive-tmo=5 --reconnect-delay=1 \
        --ctrl-loss-tmo=300
    files=$(wait_for_device "$nqn" 1)
    blocks=$(wait_for_device "$nqn" 2)
    [ "$(cat /sys/block/"${blocks##*/}"/queue/fua)" = 1 ] || fail "the namespace offers no FUA"

    file_system ext4 "$files"
    file_system xfs "$files"
    step "fio with verification"
    fio_verify "$blocks" 48m
    step "copies by the target"
    copy_verify "$blocks"
    expect_clean_kernel_log "$from"

    from=$(log_position)
    kill_under_writes "$blocks"
    # In the kill window these are expected, and shown: error recovery starts, connections refused
    # while nobody listens, reconnects, the reconnect that succeeds. I/O errors are not.
    step "the kernel's log of the kill window:"
    dmesg | tail -n "+$from"
    if dmesg | tail -n "+$from" | grep -E 'I/O error|EXT4-fs error|XFS.*(orrupt|rror)'; then
        fail "an I/O error reached the users of the device"
    fi

    from=$(log_position)
    step "the file system from before is there"
    mount "$files" /mnt
    diff -r /usr /mnt/usr || fail "the tree on $files has changed"
    umount /mnt
    check_file_system xfs "$files"
    nvme disconnect -n "$nqn"
    expect_clean_kernel_log "$from"
}

# Every block of the range is written once, in random order; the job must outlive all kills.
kill_under_writes() {
    local device=$1 job kills=0 options
    options=(--name=kill --filename="$device" --offset=64m --size=96m --rw=randwrite --bs=4k
        --iodepth=8 --ioengine=libaio --direct=1 --randseed=11 --verify=crc32c
        --verify_fatal=1)
    step "fio writes; the daemon is killed $kills_wanted times"
    fio "${options[@]}" --do_verify=0 --rate_iops=800 </dev/null >/tmp/kill.log 2>&1 &
    job=$!
    while [ "$kills" -lt "$kills_wanted" ]; do
        sleep 3
        kill -0 "$job" 2>/dev/null || {
            cat /tmp/kill.log
            fail "fio had ended before kill $((kills + 1))"
        }
        host restart
        kills=$((kills + 1))
        wait_for 60 all_live || fail "no reconnection within 60 s"
    done
    wait "$job" || {
        cat /tmp/kill.log
        fail "fio saw an error"
    }
    step "verify what fio wrote"
    echo 3 >/proc/sys/vm/drop_caches
    fio "${options[@]}" --verify_only </dev/null >/tmp/kill.log 2>&1 || {
        cat /tmp/kill.log
        fail "a block that was acknowledged is lost or wrong"
    }
}
