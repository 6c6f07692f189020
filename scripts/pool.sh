# shellcheck shell=bash
# A pool on files and a daemon that serves it, for tests, the demo and benchmarks. Sourced after
# lib.sh. This is the one place in the scripts that knows how cairnd and cairn are called.

# Processes and directories of the pool; pool_end takes them away.
pool_directory="" pool_pid="" pool_nvme_port="" pool_metrics_port=""

# Where the programs are: $CAIRN_BIN, or what cargo built for release.
pool_bin() { printf '%s\n' "${CAIRN_BIN:-$(target_dir)/release}"; }

# The command line client, talking to this pool.
pool_cairn() { "$(pool_bin)/cairn" --socket "$pool_directory/cairnd.sock" "$@"; }

# Makes a pool of so many files in a directory: pool_format DIRECTORY COUNT SIZE
pool_format() {
    local i
    pool_directory=$1
    mkdir -p "$pool_directory"
    local devices=()
    for ((i = 0; i < $2; i++)); do
        devices+=("$pool_directory/member-$i.img")
    done
    "$(pool_bin)/cairn" pool format --file-size "$3" "${devices[@]}"
    pool_configure "${devices[@]}"
}

# Writes the daemon's configuration, with free ports.
pool_configure() {
    local list ports
    list=$(printf '"%s", ' "$@")
    mapfile -t ports < <(free_ports 2)
    pool_nvme_port=${ports[0]}
    pool_metrics_port=${ports[1]}
    cat >"$pool_directory/cairnd.toml" <<TOML
[pool]
devices = [${list%, }]

[grpc]
socket = "$pool_directory/cairnd.sock"
socket_mode = "0600"

[nvme]
listen = ["127.0.0.1:$pool_nvme_port"]

[metrics]
listen = "127.0.0.1:$pool_metrics_port"
TOML
}

# Starts the daemon and waits until it serves; its log is DIRECTORY/cairnd.log.
pool_start() {
    "$(pool_bin)/cairnd" --config "$pool_directory/cairnd.toml" \
        </dev/null >>"$pool_directory/cairnd.log" 2>&1 &
    pool_pid=$!
    if ! wait_port "$pool_nvme_port" 30 "$pool_pid"; then
        tail -n 20 "$pool_directory/cairnd.log" >&2
        die "cairnd does not listen on port $pool_nvme_port"
    fi
}

# Ends the daemon as a crash would.
pool_kill() {
    kill -KILL "$pool_pid"
    wait "$pool_pid" 2>/dev/null || true
    pool_pid=
}

# Ends the daemon as an administrator would. Fails if it did not end with success.
pool_stop() {
    local status=0
    kill -TERM "$pool_pid"
    wait "$pool_pid" || status=$?
    pool_pid=
    [ "$status" = 0 ] || die "cairnd ended with status $status"
}

# Ends the daemon, if it runs, without a word; for traps.
pool_end() {
    if [ -n "$pool_pid" ]; then
        end_process "$pool_pid" 15
        pool_pid=
    fi
}

# Creates a volume: pool_volume NAME SIZE
pool_volume() { pool_cairn volume create "$1" --size "$2"; }

# Exports volumes as namespaces 1, 2, ... of a subsystem, to any host: pool_export NQN VOLUME...
pool_export() {
    local nqn=$1 volume options=()
    shift
    for volume in "$@"; do
        options+=(--volume "$volume")
    done
    pool_cairn export create "$nqn" "${options[@]}" --allow-any-host
}

# Checks every invariant and every block of the pool; fails on any problem.
pool_check() { pool_cairn fsck --online --verify-data; }

# Bytes of data in the pool.
pool_data_bytes() { pool_cairn --json pool status | jq -er .data_bytes; }

# Creates a file tree: pool_tree NAME
pool_tree() { pool_cairn fs create "$1"; }

# Copies a directory into a tree: pool_copy_in DIRECTORY TREE PATH
pool_copy_in() { pool_cairn put --recursive "$1" "$2:$3"; }

# Copies a directory out of a tree: pool_copy_out TREE PATH DIRECTORY
pool_copy_out() { pool_cairn get --recursive "$1:$2" "$3"; }
