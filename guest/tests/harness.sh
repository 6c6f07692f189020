# shellcheck shell=bash
# purpose: the harness itself, and the baseline: the kernel's own target and initiator in one guest
# limit: 180
# memory: 1G
# daemon: none
#
# What our target is compared with: the same fio job passes against nvmet over loopback TCP. If this
# test fails, look at the harness or the machine, not at Cairn.

guest_main() {
    local nqn=nqn.2014-08.org.nvmexpress:harness config=/sys/kernel/config/nvmet device
    modprobe -a nvme-tcp nvmet-tcp null_blk
    step "kernel target on a null_blk memory device"
    mkdir -p /sys/kernel/config/nullb/memory
    echo 128 >/sys/kernel/config/nullb/memory/size
    echo 1 >/sys/kernel/config/nullb/memory/memory_backed
    echo 1 >/sys/kernel/config/nullb/memory/power
    wait_for 10 test -b /dev/memory || wait_for 1 test -b /dev/nullb1 || fail "no null_blk device"
    local backing=/dev/memory
    [ -b "$backing" ] || backing=/dev/nullb1

    mkdir "$config/subsystems/$nqn"
    echo 1 >"$config/subsystems/$nqn/attr_allow_any_host"
    mkdir "$config/subsystems/$nqn/namespaces/1"
    echo "$backing" >"$config/subsystems/$nqn/namespaces/1/device_path"
    echo 1 >"$config/subsystems/$nqn/namespaces/1/enable"
    mkdir "$config/ports/1"
    echo tcp >"$config/ports/1/addr_trtype"
    echo ipv4 >"$config/ports/1/addr_adrfam"
    echo 127.0.0.1 >"$config/ports/1/addr_traddr"
    echo 4420 >"$config/ports/1/addr_trsvcid"
    ln -s "$config/subsystems/$nqn" "$config/ports/1/subsystems/$nqn"

    step "connect, write, verify"
    local from
    from=$(log_position)
    connect 127.0.0.1 4420 "$nqn"
    device=$(wait_for_device "$nqn" 1)
    fio_verify "$device" 32m
    step "a call to the host and back"
    host echo works
    nvme disconnect -n "$nqn"
    expect_clean_kernel_log "$from"
}

host_call() { [ "$*" = "echo works" ]; }
