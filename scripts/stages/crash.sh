#!/usr/bin/env bash
# Kills the daemon with SIGKILL under load and checks that nothing promised was lost.
#   KILLS=100   how often      SEED=1   the run's seed
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"
build_release
bin=$(target_dir)/release
if "$bin/tests-crash" --daemon "$bin/cairnd" --cli "$bin/cairn" \
    --kills "${KILLS:-100}" --seed "${SEED:-1}"; then
    count 1 0
else
    count 0 1
    exit 1
fi
