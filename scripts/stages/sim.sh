#!/usr/bin/env bash
# The deterministic simulator: whole pools on virtual time, one seed a run.
#   SEEDS=1..50   which seeds       SEED=7   replay one       OPS=2000   operations per seed
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

ops=${OPS:-2000}
seeds=${SEEDS:-1..50}
if [ -n "${SEED:-}" ]; then
    exec cargo run --profile sim -p engine-sim -- --seed "$SEED" --ops "$ops"
fi
first=${seeds%%..*}
last=${seeds##*..}
if cargo run --profile sim -p engine-sim -- --seeds "$seeds" --ops "$ops"; then
    count $((last - first + 1)) 0
else
    count 0 1
    die "the simulator failed; replay the seed it names: make sim SEED=N OPS=$ops"
fi
