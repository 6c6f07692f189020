#!/usr/bin/env bash
# Runs the guest tests: boots a Debian kernel in QEMU for each (no KVM needed) and lets it talk to
# programs on this machine, which the guest reaches at 10.0.2.2.
#   guest/run.sh [--list] [NAME...]        without names: all of them
# The format of a test is described in guest/README.md. Logs: .cache/guest/logs/NAME/.
# Environment: CAIRN_GUEST_CACHE (where images and logs are), GUEST_KERNEL (Debian package of the
# kernel, linux-image-amd64), CAIRN_BIN (directory of cairnd and cairn).
# shellcheck disable=SC2317 # functions that tests override are not called here
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"
# shellcheck source=scripts/pool.sh
source "$root/scripts/pool.sh"
cd "$root"

cache=${CAIRN_GUEST_CACHE:-$root/.cache/guest}

# The value of a header line `# key: value` of a test.
header() { sed -n "s/^# $2: //p" "$root/guest/tests/$1.sh" | head -n 1; }

all_tests() {
    local file
    for file in "$root"/guest/tests/*.sh; do
        basename "$file" .sh
    done
}

if [ "${1:-}" = --list ]; then
    for name in $(all_tests); do
        printf '%-12s %s\n' "$name" "$(header "$name" purpose)"
    done
    exit 0
fi

tests=("$@")
if [ "${#tests[@]}" -eq 0 ]; then
    mapfile -t tests < <(all_tests)
fi
for name in "${tests[@]}"; do
    [ -e "guest/tests/$name.sh" ] || die "no such guest test: $name (make guest LIST=1 names them)"
done

scripts/packages.sh guest
image=$(guest/image.sh "${GUEST_KERNEL:-linux-image-amd64}")
for name in "${tests[@]}"; do
    if [ "$(header "$name" daemon)" = host ] && [ -z "${CAIRN_BIN:-}" ]; then
        build_release
        break
    fi
done

# Runs one test in a process of its own; its exit status is the test's.
run_test() (
    name=$1 log=$2
    work=$(mktemp -d)
    qemu=
    end_test() {
        # The process is timeout(1), which passes SIGTERM on to QEMU; SIGKILL would orphan it.
        if [ -n "$qemu" ]; then end_process "$qemu"; fi
        host_end
        pool_end
        rm -rf "$work"
    }
    trap 'exit 124' TERM

    # A test overrides those it needs.
    host_start() { :; }
    host_call() { die "the test has no answer to: $*"; }
    host_finish() { :; }
    host_end() { :; }
    trap end_test EXIT
    # What the guest gets to know: setting NAME VALUE.
    setting() { printf '%s=%q\n' "$1" "$2" >>"$work/initramfs/test/settings"; }

    mkdir -p "$work/initramfs/test"
    cp guest/guest.sh "$work/initramfs/test/guest.sh"
    cp "guest/tests/$name.sh" "$work/initramfs/test/test.sh"
    : >"$work/initramfs/test/settings"
    # shellcheck source=guest/tests/initiator.sh
    source "guest/tests/$name.sh"
    host_start

    (cd "$work/initramfs" && find . | cpio -o -H newc --quiet) >"$work/test.cpio"
    cat "$image/initramfs.cpio" "$work/test.cpio" >"$work/initrd"
    # QEMU's pipe device: NAME.out is what the guest says, NAME.in what it hears.
    mkfifo "$work/line.in" "$work/line.out"
    memory=$(header "$name" memory)
    nice -n 5 timeout --kill-after=5 "$(header "$name" limit)" qemu-system-x86_64 \
        -accel tcg,thread=multi -M q35 -cpu max -m "${memory:-1G}" -smp 2 \
        -kernel "$image/vmlinuz" -initrd "$work/initrd" \
        -append "console=ttyS0 panic=1 quiet nowatchdog" \
        -nographic -no-reboot -nodefaults -monitor none \
        -serial "file:$log/console.log" \
        -chardev "pipe,id=line,path=$work/line" -serial chardev:line \
        -netdev user,id=net0,ipv6=off -device virtio-net-pci,netdev=net0,romfile= \
        </dev/null 2>"$log/qemu.log" &
    qemu=$!
    # Open for both ways: neither end then waits for the other.
    exec {to_guest}<>"$work/line.in"
    status=
    while IFS= read -r line; do
        line=${line%$'\r'}
        case $line in
            "@host "*)
                read -ra words <<<"${line#@host }"
                say "host: ${words[*]}"
                if host_call "${words[@]}"; then say ok >&"$to_guest"; else say failed >&"$to_guest"; fi
                ;;
            "@status "*) status=${line#@status } ;;
            *) say "$line" ;;
        esac
    done <"$work/line.out"
    qemu_status=0
    wait "$qemu" || qemu_status=$?
    qemu=
    if [ -z "$status" ]; then
        say "the guest ended without a status (qemu: $qemu_status); its console:"
        tail -n 25 "$log/console.log" || true
        cat "$log/qemu.log"
        if [ "$qemu_status" = 124 ] || [ "$qemu_status" = 137 ]; then exit 124; fi
        exit 125
    fi
    [ "$status" = 0 ] || exit "$status"
    host_finish
)

passed=0 failed=()
for name in "${tests[@]}"; do
    log=$cache/logs/$name
    rm -rf "$log"
    mkdir -p "$log"
    begin=$SECONDS
    say "-- guest test $name: $(header "$name" purpose)"
    set +e
    (set -e; run_test "$name" "$log") 2>&1 | tee "$log/output.log"
    status=${PIPESTATUS[0]}
    set -e
    if [ "$status" = 0 ]; then
        say "PASS $name ($((SECONDS - begin)) s)"
        passed=$((passed + 1))
    else
        if [ "$status" = 124 ]; then say "the time limit of $(header "$name" limit) s passed"; fi
        say "FAIL $name (status $status, $((SECONDS - begin)) s); logs in $log"
        failed+=("$name")
    fi
done
count "$passed" "${#failed[@]}"
say ""
say "guest tests: $passed passed, ${#failed[@]} failed ${failed[*]}"
[ "${#failed[@]}" -eq 0 ]
