#!/usr/bin/env bash
# Makes the guest's image once and keeps it: a Debian kernel, and an initramfs with busybox, the
# programs the tests call, their libraries, and kernel modules. Prints the directory it is in.
#   guest/image.sh [KERNEL_PACKAGE]        linux-image-amd64 unless told otherwise
# The cache is .cache/guest, or $CAIRN_GUEST_CACHE. An image is made anew when this script, the guest's
# init, the kernel package or one of the programs changes.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"

meta=${1:-linux-image-amd64}
cache=${CAIRN_GUEST_CACHE:-$root/.cache/guest}
init=$root/guest/init.sh

programs="bash nvme fio mkfs.ext4 e2fsck mkfs.xfs xfs_repair mount umount blkdiscard blockdev fstrim
    kmod ip stat dd cp sha256sum cmp find diff timeout head seq truncate"
modules="nvme-tcp nvme-fabrics nvmet nvmet-tcp nvme-loop virtio_net virtio_pci virtio_blk ext4 xfs
    loop null_blk crc32c_generic crc32c-intel configfs"

# What `apt-get download` would fetch: the package that the meta package depends on.
kernel_package() {
    local package
    package=$(apt-cache depends "$meta" 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    say "${package:-$meta}"
}

program_path() {
    local path
    path=$(PATH="$PATH:/usr/sbin:/sbin" command -v "$1") || die "absent on this machine: $1"
    readlink -f "$path"
}

# Everything the image is made of, in one hash.
image_key() {
    local program
    {
        cat "$root/guest/image.sh" "$init"
        say "$1"
        for program in $programs busybox; do
            stat -L -c '%n %s %Y' "$(program_path "$program")"
        done
    } | sha256sum | cut -c 1-16
}

fetch_kernel() { # into DIR/kernel
    local package=$1 directory=$2
    mkdir -p "$directory/download" "$directory/kernel"
    # Not as the user _apt, who cannot write here.
    (cd "$directory/download" &&
        apt-get download --quiet -o APT::Sandbox::User=root "$package" >&2) ||
        die "cannot download $package: run apt-get update first"
    dpkg-deb -x "$directory"/download/*.deb "$directory/kernel"
    rm -r "$directory/download"
}

# Copies the libraries of an ELF file to the same place in the image.
add_libraries() {
    local library
    { ldd "$1" 2>/dev/null || true; } | awk '/=> \// { print $3 } /^\t\/lib/ { print $1 }' |
        while read -r library; do
            mkdir -p "$2$(dirname "$library")"
            cp -L "$library" "$2$library"
        done
}

add_programs() {
    local tree=$1 program path plugin
    for program in $programs; do
        path=$(program_path "$program")
        cp -L "$path" "$tree/usr/bin/$program"
        add_libraries "$path" "$tree"
    done
    for program in modprobe lsmod; do
        ln -sf kmod "$tree/usr/bin/$program"
    done
    # Where the kernel looks when it needs a module itself, as crc32c for digests.
    ln -sf ../usr/bin/kmod "$tree/sbin/modprobe"
    # What is opened by name at run time: threads of glibc, engines of fio.
    for plugin in /lib/x86_64-linux-gnu/libgcc_s.so.1 /lib/x86_64-linux-gnu/libnss_files.so.2; do
        if [ -e "$plugin" ]; then
            mkdir -p "$tree$(dirname "$plugin")"
            cp -L "$plugin" "$tree$plugin"
        fi
    done
    { dpkg -L fio 2>/dev/null || true; } | { grep '\.so$' || true; } | while read -r plugin; do
        mkdir -p "$tree$(dirname "$plugin")"
        cp -L "$plugin" "$tree$plugin"
        add_libraries "$plugin" "$tree"
    done
    if [ -e /etc/mke2fs.conf ]; then cp /etc/mke2fs.conf "$tree/etc/"; fi
}

add_modules() {
    local tree=$1 kernel=$2 version=$3 module
    for module in $modules; do
        modprobe -d "$kernel" -S "$version" --show-depends -q "$module" || true
    done 2>/dev/null | awk '/^insmod/ { print $2 }' | sed "s,^.*/lib/modules/,," | sort -u |
        while read -r module; do
            mkdir -p "$tree/lib/modules/$(dirname "$module")"
            cp "$kernel/lib/modules/$module" "$tree/lib/modules/$module"
        done
    cp "$kernel/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} \
        "$tree/lib/modules/$version/"
    depmod -b "$tree" "$version"
    [ -n "$(find "$tree/lib/modules" -name 'nvme-tcp.ko*')" ] || die "no nvme-tcp module in $meta"
}

add_settings() {
    local tree=$1 id=5eed0000-0000-4000-8000-000000000001
    echo 'root:x:0:0:root:/:/bin/sh' >"$tree/etc/passwd"
    echo 'root:x:0:' >"$tree/etc/group"
    echo '127.0.0.1 localhost' >"$tree/etc/hosts"
    echo "nqn.2014-08.org.nvmexpress:uuid:$id" >"$tree/etc/nvme/hostnqn"
    echo "$id" >"$tree/etc/nvme/hostid"
    cp -r /etc/ld.so.conf /etc/ld.so.conf.d "$tree/etc/" 2>/dev/null || true
    ldconfig -r "$tree"
}

build_image() {
    local package=$1 directory=$2 version=${1#linux-image-} tree=$2/tree
    fetch_kernel "$package" "$directory"
    if [ ! -e "$directory/kernel/boot/vmlinuz-$version" ]; then
        version=$(basename "$directory"/kernel/boot/vmlinuz-*)
        version=${version#vmlinuz-}
    fi
    depmod -b "$directory/kernel" "$version"
    mkdir -p "$tree"/{bin,sbin,usr/bin,usr/sbin,etc/nvme,dev,proc,sys,tmp,mnt,run,test} \
        "$tree/lib/modules/$version"
    cp "$(program_path busybox)" "$tree/bin/busybox"
    add_programs "$tree"
    add_modules "$tree" "$directory/kernel" "$version"
    add_settings "$tree"
    install -m 755 "$init" "$tree/init"
    cp "$directory/kernel/boot/vmlinuz-$version" "$directory/vmlinuz"
    (cd "$tree" && find . | LC_ALL=C sort | cpio -o -H newc --quiet) >"$directory/initramfs.cpio"
    rm -r "$tree" "$directory/kernel"
}

if [ -z "$(apt-cache depends "$meta" 2>/dev/null)" ]; then
    [ "$(id -u)" = 0 ] || die "apt knows no $meta; run: sudo apt-get update"
    apt-get update --quiet >&2
fi
package=$(kernel_package)
image=$cache/$package-$(image_key "$package")
if [ ! -e "$image/initramfs.cpio" ]; then
    warn "making the guest image $image"
    rm -rf "$image" "$image.new"
    mkdir -p "$image.new"
    build_image "$package" "$image.new"
    mv "$image.new" "$image"
    # An older image of the same kernel is of no use any more.
    find "$cache" -maxdepth 1 -name "$package-*" ! -path "$image" -exec rm -r {} +
fi
say "$image"
