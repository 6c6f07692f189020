# shellcheck shell=bash
# Functions that the scripts share. Sourced, never run.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export root

# Where cargo puts what it builds.
target_dir() { printf '%s\n' "${CARGO_TARGET_DIR:-$root/target}"; }

# The release programs that stages run. All of them each time: cargo settles on other features of the crates below when
# it is asked for others, and builds these anew.
build_release() {
    cargo build --release -p service-daemon -p service-cli -p tests-crash -p benches \
        --bins --example operation_costs
}

# One line for people, on standard output.
say() { printf '%s\n' "$*"; }

# One line for people, on standard error.
warn() { printf '%s\n' "$*" >&2; }

# Ends the script with a message.
die() {
    warn "error: $*"
    exit 1
}

# Is a command on PATH, or where Debian keeps the administrator's ones?
have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

# Adds tests to the run's sum: count PASSED FAILED. scripts/test.sh reads them.
count() {
    if [ -n "${CAIRN_COUNTS:-}" ]; then
        printf '%d %d\n' "$1" "$2" >>"$CAIRN_COUNTS"
    fi
}

# Ends a stage as not run, with the reason: shown in the summary, never counted as passed.
skip() {
    say "skipped: $*"
    if [ -n "${CAIRN_SKIP_REASON:-}" ]; then
        printf '%s\n' "$*" >"$CAIRN_SKIP_REASON"
    fi
    exit 77
}

# Prints COUNT free TCP ports on 127.0.0.1, one a line. A port is free if nobody listens on it now;
# who takes one must still cope with losing a race for it. Above the ephemeral range's start only
# by luck taken by an outgoing connection, so the range below 32768 is used.
free_ports() {
    local wanted=$1 port tries=0 taken=" "
    while [ "$wanted" -gt 0 ]; do
        tries=$((tries + 1))
        [ "$tries" -le 1000 ] || die "no free TCP port found in 1000 tries"
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        case $taken in *" $port "*) continue ;; esac
        # A refused connection: nobody listens.
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            taken="$taken$port "
            say "$port"
            wanted=$((wanted - 1))
        fi
    done
}

# Waits until a TCP port of this machine accepts: wait_port PORT SECONDS PID. Fails when the process
# PID has ended or the time is over.
wait_port() {
    local port=$1 deadline=$((SECONDS + $2)) pid=$3
    while ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        kill -0 "$pid" 2>/dev/null || return 1
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# Ends a process and waits for it: SIGTERM, and SIGKILL when it has not ended after SECONDS.
end_process() {
    local pid=$1 deadline=$((SECONDS + ${2:-10}))
    kill -TERM "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            warn "process $pid did not end on SIGTERM: killing it"
            kill -KILL "$pid" 2>/dev/null || true
            break
        fi
        sleep 0.1
    done
    wait "$pid" 2>/dev/null || true
}
