#!/usr/bin/env bash
# Runs the commands of README.md: every block that opens with ```sh test, in order, in one shell
# that starts where a reader would, in the repository's root.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

work=$(mktemp -d)
shell_pid=
cleanup() {
    # The commands run in a session of their own; whatever they left running ends with it.
    if [ -n "$shell_pid" ]; then
        kill -TERM -- "-$shell_pid" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT

awk -v done_file="$work/done" '
    BEGIN { print "set -euo pipefail" }
    !inside && /^```sh test$/ {
        inside = 1; blocks++; block = ""
        next
    }
    inside && /^```$/ {
        inside = 0
        printf "echo; echo \"---- README block %d\"\n", blocks
        printf "cat <<\"README_BLOCK\"\n%sREADME_BLOCK\n", block
        printf "%secho %d >> %s\n", block, blocks, done_file
        next
    }
    inside { block = block $0 "\n" }
    END { if (inside) { print "an open block at the end of README.md" > "/dev/stderr"; exit 1 } }
' README.md >"$work/commands.sh"

blocks=$(grep -c '^```sh test$' README.md || true)
[ "$blocks" -gt 0 ] || die "README.md has no block marked as tested"
: >"$work/done"

export TMPDIR="$work"
setsid bash "$work/commands.sh" &
shell_pid=$!
status=0
wait "$shell_pid" || status=$?
ran=$(wc -l <"$work/done")
if [ "$status" -ne 0 ] || [ "$ran" -ne "$blocks" ]; then
    count "$ran" 1
    die "block $((ran + 1)) of $blocks in README.md failed with status $status"
fi
count "$ran" 0
say ""
say "$ran README blocks ran"
