#!/bin/busybox sh
# shellcheck shell=dash
# The guest's first process: mounts, network, one test, power off. ttyS0 is the kernel's console,
# ttyS1 the line between the test and the host: what the test prints, and calls to the host.
/bin/busybox --install -s /bin
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/ TERM=dumb LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs -o size=70% tmp /tmp
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1

modprobe -aq virtio_pci virtio_net virtio_blk configfs
mount -t configfs config /sys/kernel/config
ip link set lo up
for name in eth0 ens2 enp0s2; do
    if [ -e "/sys/class/net/$name" ]; then
        # No default route: nothing but the host's loopback, at 10.0.2.2, can be reached.
        ip link set "$name" up
        ip addr add 10.0.2.15/24 dev "$name"
        break
    fi
done
ulimit -l unlimited

echo "guest: Linux $(uname -r), up after $(cut -d' ' -f1 /proc/uptime) s"
cd /test || exit
bash /test/guest.sh
echo "@status $?"
sync
poweroff -f
