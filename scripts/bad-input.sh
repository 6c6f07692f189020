#!/usr/bin/env bash
# Feeds the programs wrong input and prints what each says, as the table in docs/bad-input.md.
# A case that is accepted, or that ends by a panic or a signal, fails the run.
#   CAIRN_BIN=DIR   where cairnd and cairn are (default: what cargo built for release)
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
bin=${CAIRN_BIN:-$(target_dir)/release}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
failed=0 cases=0

row() { # row AREA CASE COMMAND...: the command must fail with words
    local area=$1 what=$2 status=0 words
    shift 2
    words=$(timeout 20 "$@" 2>&1 </dev/null) || status=$?
    words=$(printf '%s' "$words" | grep -v '^$' | head -n 2 | tr '\n' ' ' | sed -e "s|$work/||g" -e 's/|/\\|/g')
    cases=$((cases + 1))
    printf '| %s | %s | %s | %s |\n' "$area" "$what" "$status" "${words:0:230}"
    case $words in *panicked*) status=0 ;; esac
    if [ "$status" -eq 0 ] || [ "$status" -ge 100 ] || [ -z "$words" ]; then
        failed=$((failed + 1))
        echo "^^ NOT REFUSED AS IT SHOULD BE" >&2
    fi
}
cairn() { row CLI "$1" "$bin/cairn" "${@:2}"; }
config() { # config CASE TOML
    printf '[pool]\ndevices = ["%s/disk.img"]\n%s\n' "$work" "$2" >bad.toml
    row config "$1" "$bin/cairnd" --check-config --config bad.toml
}
fresh() { # a new pool in image.img
    rm -f image.img
    "$bin/cairn" pool format --file-size 64M image.img >/dev/null
}
poke() { # poke OFFSET: two damaged bytes
    printf '\xde\xad' | dd of=image.img bs=1 seek="$1" conv=notrunc status=none
}
image() { row image "$1" "$bin/cairn" fsck image.img; }

"$bin/cairn" pool format --file-size 64M disk.img >/dev/null
echo '| where | input | exit | answer |'
echo '| --- | --- | --- | --- |'
cairn 'no command'
cairn 'an unknown command' frobnicate
cairn 'an unknown option' ls --frobnicate
cairn 'a size that is no number' volume create v --size lots
cairn 'a size of 0' --socket none.sock volume create v --size 0
cairn 'format over a pool' pool format disk.img
cairn 'format of a device that is not there' pool format absent.img
cairn 'format of a device that is too small' pool format --file-size 1M small.img
cairn 'format with 3 shards' pool format --file-size 64M --shards 3 three.img
cairn 'one device twice' pool format --force disk.img disk.img
cairn 'a bucket size that is no power of two' pool format --file-size 64M --bucket-size 100000 b.img
cairn 'a label of 40 bytes' pool format --file-size 64M --label 0123456789012345678901234567890123456789 l.img
cairn 'a socket that nobody serves' --socket none.sock pool status
cairn 'a target without a colon' --socket none.sock ls home
cairn 'fsck of a file that is no member' fsck /etc/hostname
head -c 64M /dev/urandom >noise.img
cairn 'format over data of an unknown kind' pool format noise.img
cairn 'fsck of noise' fsck noise.img
mkdir directory
cairn 'format of a directory' pool format directory
config 'an unknown section' '[cheese]'
config 'a misspelt key' $'[grpc]\nsokcet = "/run/x"'
config 'a number where text belongs' $'[grpc]\nsocket = 7'
config 'a socket path that is not absolute' $'[grpc]\nsocket = "x.sock"'
config 'a negative count' $'[cores]\ncount = -1'
config 'a thousand cores' $'[cores]\ncount = 100000'
config 'an address without a port' $'[nvme]\nlisten = ["127.0.0.1"]'
config 'an address that is none' $'[metrics]\nlisten = "nowhere:x"'
config 'an unknown log format' $'[log]\nformat = "xml"'
config 'an unknown host of the cores' $'[cores]\nhost = "windows"'
config 'a shutdown without time' $'[shutdown]\ntimeout_s = 0'
config 'TOML that is none' '[[['
row config 'a file that is not there' "$bin/cairnd" --check-config --config absent.toml
printf '[pool]\ndevices = []\n' >bad.toml
row config 'no devices' "$bin/cairnd" --check-config --config bad.toml
printf '[pool]\ndevices = ["%s/absent.img"]\n' "$work" >bad.toml
row config 'a device that is not there' "$bin/cairnd" --check-config --config bad.toml
printf '[pool]\ndevices = ["%s/noise.img"]\n' "$work" >bad.toml
row config 'a device that is no member' "$bin/cairnd" --check-config --config bad.toml
"$bin/cairn" pool format --file-size 64M two-a.img two-b.img >/dev/null
row image 'one of two members' "$bin/cairn" fsck two-a.img
row image 'members of two pools' "$bin/cairn" fsck two-a.img disk.img
cp two-a.img copy.img
row image 'a member and its copy' "$bin/cairn" fsck two-a.img copy.img
fresh
for at in 65536 131072 67043328; do poke "$at"; done
image 'all superblock copies damaged'
fresh
truncate -s 20M image.img
image 'an image that was cut short'
fresh
# The journals start after the superblocks, at the fourth bucket of 64 KiB; the first entry of each shard.
for shard in 0 1 2 3; do poke $((196608 + shard * 1048576)); done
image 'the only journal entry of every shard damaged'
fresh
dd if=/dev/zero of=image.img bs=64K seek=3 count=16 conv=notrunc status=none
image 'a journal overwritten with zeroes'
fresh
dd if=image.img of=image.img bs=64K skip=1 seek=2 count=1 conv=notrunc status=none
for at in 65536 67043328; do poke "$at"; done
image 'a superblock copy in the wrong place only'
echo
echo "$((cases - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
