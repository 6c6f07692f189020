# shellcheck shell=bash
# purpose: header and data digests (CRC-32C of every PDU), each alone and both together
# limit: 240
# memory: 1G
# daemon: host

nqn=nqn.2014-08.org.nvmexpress:uuid:5eed0000-0000-4000-8000-0000000000c1

host_start() {
    pool_format "$work/pool" 1 1G
    pool_start
    pool_volume disk 256M
    pool_export "$nqn" disk
    setting PORT "$pool_nvme_port"
}

host_finish() {
    pool_check
    pool_stop
}

guest_main() {
    modprobe nvme-tcp
    local from digests device
    from=$(log_position)
    for digests in "--hdr-digest" "--data-digest" "--hdr-digest --data-digest"; do
        step "fio with $digests"
        # shellcheck disable=SC2086 # two options
        connect 10.0.2.2 "$PORT" "$nqn" --nr-io-queues=2 $digests
        device=$(wait_for_device "$nqn" 1)
        fio_verify "$device" 16m
        # Larger than the data a command may carry in its capsule: R2T and H2CData.
        fio_verify "$device" 64m --bs=256k --iodepth=4
        nvme disconnect -n "$nqn"
    done
    expect_clean_kernel_log "$from"
}
