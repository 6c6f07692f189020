# shellcheck shell=bash
# purpose: nvme-cli: discover, connect-all, identify, list, logs, features, disconnect
# limit: 180
# memory: 1G
# daemon: host

nqn=nqn.2014-08.org.nvmexpress:uuid:5eed0000-0000-4000-8000-0000000000b1
other=nqn.2014-08.org.nvmexpress:uuid:5eed0000-0000-4000-8000-0000000000b2

host_start() {
    pool_format "$work/pool" 1 1G
    pool_start
    pool_volume one 256M
    pool_volume two 64M
    pool_export "$nqn" one
    pool_export "$other" two
    setting PORT "$pool_nvme_port"
}

host_finish() {
    pool_check
    pool_stop
}

guest_main() {
    modprobe nvme-tcp
    local from device controller
    from=$(log_position)

    step "discover"
    nvme discover -t tcp -a 10.0.2.2 -s "$PORT" | tee /tmp/discover
    grep -q "subnqn: *$nqn" /tmp/discover || fail "$nqn is not in the discovery log"
    grep -q "subnqn: *$other" /tmp/discover || fail "$other is not in the discovery log"
    # Under QEMU's address translation the guest's way to the target is not the target's own address:
    # the log must name what the target listens on.
    grep -q "trsvcid: *$PORT" /tmp/discover || fail "the discovery log names another port"

    step "connect, one by one"
    connect 10.0.2.2 "$PORT" "$nqn"
    connect 10.0.2.2 "$PORT" "$other"
    device=$(wait_for_device "$nqn" 1)
    wait_for_device "$other" 1
    if nvme connect -t tcp -a 10.0.2.2 -s "$PORT" -n nqn.2014-08.org.nvmexpress:absent; then
        fail "a subsystem that does not exist accepted a connection"
    fi
    controller=$(controller_of "$nqn")

    step "identify"
    nvme id-ctrl "$controller" | tee /tmp/id-ctrl
    grep -q "subnqn *: *$nqn" /tmp/id-ctrl || fail "Identify Controller names another subsystem"
    nvme id-ns "$device" | tee /tmp/id-ns
    # 256 MiB in blocks of the size in use.
    local block blocks
    block=$(blockdev --getss "$device")
    blocks=$(sed -n 's/^nsze *: *//p' /tmp/id-ns)
    [ $((blocks * block)) = $((256 << 20)) ] || fail "the namespace has $blocks blocks of $block bytes"
    [ "$(blockdev --getsize64 "$device")" = $((256 << 20)) ] || fail "the kernel sees another size"
    nvme ns-descs "$device"
    nvme list-ns "$controller" | grep -q '0x1$' || fail "namespace 1 is not listed"
    nvme list
    nvme list-subsys

    step "logs and features"
    nvme smart-log "$controller"
    nvme error-log "$controller" >/dev/null
    nvme fw-log "$controller"
    nvme get-feature "$controller" -f 7 -H
    nvme get-feature "$controller" -f 0xb
    nvme flush "$device"

    step "disconnect"
    nvme disconnect -n "$nqn"
    nvme disconnect-all
    [ -z "$(ls /sys/class/nvme)" ] || fail "a controller is left"
    # A connection that was refused is an error of the caller, and logged by the kernel as one.
    local errors
    errors=$(kernel_errors "$from" | grep -v 'Connect Invalid\|failed to connect queue: 0' || true)
    [ -z "$errors" ] || fail "the kernel's log has errors:
$errors"
}

controller_of() {
    local directory
    for directory in /sys/class/nvme/nvme*; do
        if [ "$(cat "$directory/subsysnqn")" = "$1" ]; then
            echo "/dev/${directory##*/}"
            return
        fi
    done
    fail "no controller for $1"
}
