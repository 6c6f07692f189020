#!/usr/bin/env bash
# Wrong input on the command line, in the configuration and on devices; see docs/bad-input.md.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"
build_release
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
scripts/bad-input.sh | tee "$log" || status=$?
read -r passed failed < <(awk '/ passed, / { print $1, $3 }' "$log")
count "${passed:-0}" "${failed:-1}"
exit "$status"
