# shellcheck shell=bash
# purpose: our target without the engine: volumes in memory, file systems, digests, many queues
# limit: 420
# memory: 2G
# daemon: none
#
# The target's own example serves the volumes. What fails here is the protocol; what fails only in
# `initiator` is the engine, or the daemon.

nqn=nqn.2026-01.io.cairn:memory
target_pid=

host_start() {
    local ports
    cargo build --release -p nvme-target --example memory_target
    mapfile -t ports < <(free_ports 1)
    # Its standard input is its command line: a pipe that stays open and says nothing.
    mkfifo "$work/commands"
    # shellcheck disable=SC2034 # kept open, not used
    exec {commands}<>"$work/commands"
    "$(target_dir)/release/examples/memory_target" "127.0.0.1:${ports[0]}" 512 \
        <"$work/commands" >"$work/target.log" 2>&1 &
    target_pid=$!
    wait_port "${ports[0]}" 10 "$target_pid" || die "the example target does not listen"
    setting PORT "${ports[0]}"
}

host_end() {
    if [ -n "$target_pid" ]; then end_process "$target_pid"; fi
}

guest_main() {
    modprobe -a nvme-tcp ext4 xfs
    local from device nsid
    from=$(log_position)
    connect 10.0.2.2 "$PORT" "$nqn" --nr-io-queues=2
    for nsid in 1 2; do
        device=$(wait_for_device "$nqn" "$nsid")
        step "$device has blocks of $(blockdev --getss "$device") bytes"
        fio_verify "$device" 32m
        copy_verify "$device"
    done
    file_system ext4 "$device"
    file_system xfs "$device"
    nvme disconnect -n "$nqn"
    step "header and data digests"
    connect 10.0.2.2 "$PORT" "$nqn" --nr-io-queues=2 --hdr-digest --data-digest
    device=$(wait_for_device "$nqn" 2)
    fio_verify "$device" 16m
    fio_verify "$device" 64m --bs=256k --iodepth=4
    blkdiscard --force "$device"
    cmp -n $((16 << 20)) "$device" /dev/zero || fail "discarded blocks are not zero"
    nvme disconnect -n "$nqn"
    expect_clean_kernel_log "$from"
}
