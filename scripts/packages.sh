#!/usr/bin/env bash
# Sees to it that the programs a set of tests needs are there.
#   scripts/packages.sh SET...       SET: build, guest, bench, costs, filesystems
# As root on Debian or Ubuntu, what is missing is installed with apt-get. Otherwise the script names
# what is missing and the command that installs it, and fails.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

# PROGRAM=PACKAGE, one a word.
programs_of() {
    case $1 in
        build) echo "cc=gcc make=make" ;;
        guest)
            echo "qemu-system-x86_64=qemu-system-x86 busybox=busybox-static cpio=cpio kmod=kmod \
                depmod=kmod modprobe=kmod nvme=nvme-cli fio=fio mkfs.ext4=e2fsprogs \
                mkfs.xfs=xfsprogs ip=iproute2 dpkg-deb=dpkg jq=jq"
            ;;
        bench) echo "fio=fio jq=jq" ;;
        costs) echo "valgrind=valgrind jq=jq" ;;
        filesystems) echo "mkfs.btrfs=btrfs-progs mkfs.xfs=xfsprogs mkfs.ext4=e2fsprogs losetup=mount" ;;
        *) die "no such set of packages: $1" ;;
    esac
}

[ $# -ge 1 ] || die "usage: scripts/packages.sh SET..."

missing_packages() {
    local set pair
    for set in "$@"; do
        for pair in $(programs_of "$set"); do
            have "${pair%%=*}" || say "${pair#*=}"
        done
    done | sort -u
}

mapfile -t missing < <(missing_packages "$@")
[ "${#missing[@]}" -gt 0 ] || exit 0

say "missing packages: ${missing[*]}"
if ! have apt-get; then
    die "install these programs with your system's package manager (only apt-get is known here): ${missing[*]}"
fi
if [ "$(id -u)" != 0 ]; then
    die "not root; install them with: sudo apt-get update && sudo apt-get install --yes ${missing[*]}"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet
apt-get install --yes --quiet --no-install-recommends "${missing[@]}"

mapfile -t missing < <(missing_packages "$@")
[ "${#missing[@]}" -eq 0 ] || die "still missing after the installation: ${missing[*]}"
