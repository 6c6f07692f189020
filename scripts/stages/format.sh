#!/usr/bin/env bash
# Formatting of the Rust code; the shell scripts parse, and pass shellcheck where it is installed.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

cargo fmt --all --check
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
for script in "${scripts[@]}"; do
    bash -n "$script"
done
if have shellcheck; then
    shellcheck --external-sources "${scripts[@]}"
else
    say "shellcheck is not installed: the ${#scripts[@]} shell scripts were only parsed"
fi
