#!/usr/bin/env bash
# The deterministic simulator: whole pools on virtual time, one seed a run. Then every planted bug,
# each of which some seed must find: a simulator that finds nothing proves nothing.
#   SEEDS=1..300  which seeds     OPS=2000   operations per seed     SEED=7   replay one, alone
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

ops=${OPS:-2000}
seeds=${SEEDS:-1..300}
if [ -n "${SEED:-}" ]; then
    exec cargo run --profile sim -p engine-sim -- --seed "$SEED" --ops "$ops" --verbose
fi

status=0
first=${seeds%%..*}
last=${seeds##*..}
if cargo run --profile sim -p engine-sim -- --seeds "$seeds" --ops "$ops" --jobs "$(nproc)"; then
    count $((last - first + 1)) 0
else
    count 0 1
    status=1
    say "the simulator found a broken promise; replay the seed it names: make sim SEED=N OPS=$ops"
fi

say ""
say "-- a crash at every write of short scripts, and a day of virtual time"
for mode in "--exhaustive --seeds 1..3 --ops 40" "--long 24 --ops 6000 --seeds 1..3"; do
    # shellcheck disable=SC2086 # The words are options.
    if cargo run --profile sim -p engine-sim -- $mode; then
        count 1 0
    else
        count 0 1
        status=1
        say "failed: $mode"
    fi
done

say ""
say "-- planted bugs"
if cargo run --profile sim -p engine-sim --features planted-bugs -- --canary --seeds 1..1200 --ops "$ops"; then
    count 1 0
else
    count 0 1
    status=1
    say "a planted bug was not found"
fi
exit "$status"
