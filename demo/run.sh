#!/usr/bin/env bash
# The whole of Cairn on this machine: a pool on two files, a daemon, a file tree with a copy of real
# source code, a volume exported over NVMe/TCP. Then it tells how to look around and stays until
# Ctrl-C.   DEMO=once ends by itself, with status 0 if everything worked.
# The pool is made in ./demo-pool, anew each time.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"
# shellcheck source=scripts/pool.sh
source "$root/scripts/pool.sh"
cd "$root"

directory=$root/demo-pool
nqn=nqn.2014-08.org.nvmexpress:uuid:5eed0000-0000-4000-8000-00000000de30
connected=

header() {
    say ""
    say "== $*"
}

# Shows a command with its real arguments, and runs it.
run() {
    say "\$ $*"
    "$@"
}

clean_up() {
    if [ -n "$connected" ]; then nvme disconnect -n "$nqn" >/dev/null || true; fi
    pool_end
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Real files to copy: our own sources, and those of one of the crates we use.
gather_input() {
    local crate
    mkdir -p "$1"
    git ls-files -z | grep -z -v -E '^(demo-pool|\.cache)/' | xargs -0 cp --parents -t "$1"
    crate=$(find "${CARGO_HOME:-$HOME/.cargo}"/registry/src -mindepth 2 -maxdepth 2 -type d \
        -name 'tokio-1*' 2>/dev/null | sort | tail -n 1 || true)
    if [ -n "$crate" ]; then
        cp -r "$crate" "$1/"
    fi
}

# The kernel's initiator, where this machine lets us: root, the module, nvme-cli.
connect_initiator() {
    local missing=""
    [ "$(id -u)" = 0 ] || missing="not root"
    have nvme || missing="${missing:+$missing, }nvme-cli is not installed"
    if [ -z "$missing" ] && ! modprobe nvme-tcp 2>/dev/null; then
        missing="this kernel has no nvme-tcp module"
    fi
    if [ -n "$missing" ]; then
        say "Not connected with the kernel's initiator: $missing."
        say "On a machine that has it: nvme connect -t tcp -a 127.0.0.1 -s $pool_nvme_port -n $nqn"
        say "(make guest TEST=initiator does it in a guest.)"
        return
    fi
    run nvme connect -t tcp -a 127.0.0.1 -s "$pool_nvme_port" -n "$nqn"
    connected=1
    run nvme list
}

if [ -e "$directory" ]; then
    [ -e "$directory/made-by-demo" ] || die "$directory exists and is not the demo's: move it away"
    rm -r "$directory"
fi
mkdir "$directory"
touch "$directory/made-by-demo"

header "Building (release)"
cargo build --release -p service-daemon -p service-cli

header "A pool on two files of 2 GiB, and a daemon that serves it"
pool_format "$directory" 2 2G
pool_start
say "cairnd runs (process $pool_pid): configuration $directory/cairnd.toml, log $directory/cairnd.log"

header "A file tree, and real files in it"
gather_input "$directory/input"
files=$(find "$directory/input" -type f | wc -l)
say "$files files, $(du -sh "$directory/input" | cut -f 1)"
pool_tree sources
begin=$SECONDS
pool_copy_in "$directory/input" sources /input
pool_copy_out sources /input "$directory/output"
diff -r "$directory/input" "$directory/output" || die "what came out is not what went in"
say "copied in and out in $((SECONDS - begin)) s, and diff -r finds no difference"

header "A volume, exported over NVMe/TCP"
pool_volume disk 512M
pool_export "$nqn" disk
connect_initiator

header "The pool now"
pool_cairn pool status
pool_check

if [ "${DEMO:-}" = once ]; then
    header "Stopping"
    if [ -n "$connected" ]; then run nvme disconnect -n "$nqn"; fi
    connected=
    pool_stop
    say "the demo worked"
    exit 0
fi

cairn="$(pool_bin)/cairn --socket $directory/cairnd.sock"
cat <<TEXT

== Look around, from another terminal
  $cairn pool status
  $cairn fs list --usage
  $cairn ls sources:/input
  $cairn cat sources:/input/README.md
  $cairn volume list
  $cairn export list
  $cairn fsck --online
  curl -s http://127.0.0.1:$pool_metrics_port/metrics
  nvme discover -t tcp -a 127.0.0.1 -s $pool_nvme_port
  tail -f $directory/cairnd.log
Ctrl-C ends the daemon; the pool stays in $directory until the next demo.
TEXT
wait "$pool_pid"
