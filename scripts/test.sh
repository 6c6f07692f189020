#!/usr/bin/env bash
# Runs the test stages, all of them even when one fails, and ends with a table and the sum of tests.
#   scripts/test.sh [STAGE...]       without names: every stage, in the order below
# A stage is scripts/stages/NAME.sh and can be run alone. It passes with status 0, is skipped with 77
# (and says why), and fails with anything else. Its output is also kept in target/test-logs/NAME.log.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$root"

# Name and time limit in seconds: at least three times what the stage takes on two quiet cores, so that what
# hangs is ended and the other stages still run. CI ends the whole after 90 minutes.
all_stages="
toolchain 300
format 60
clippy 600
build 1500
unit 1800
loom 900
sim 1800
costs 600
crash 900
refusals 300
fuzz 900
guest 1200
readme 900
dependencies 60
"

# A warning is an error in every build of the run; one value for all, so that cargo builds once.
export RUSTFLAGS="${RUSTFLAGS:--D warnings}"
export CARGO_TERM_COLOR=never
# A first build gains nothing from what a second could take over, and is longer for it.
if [ ! -d "$(target_dir)" ]; then
    export CARGO_INCREMENTAL=0
fi

logs="$(target_dir)/test-logs"
rm -rf "$logs"
mkdir -p "$logs"
export CAIRN_COUNTS="$logs/counts"
: >"$CAIRN_COUNTS"

limit_of() { awk -v name="$1" '$1 == name { print $2 }' <<<"$all_stages"; }

# Passes what a stage prints on to a reader who watches; others read the log.
watched() {
    if [ -t 1 ] || [ -n "${VERBOSE:-}" ]; then tee "$1"; else cat >"$1"; fi
}

minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

stages=("$@")
if [ "${#stages[@]}" -eq 0 ]; then
    mapfile -t stages < <(awk 'NF { print $1 }' <<<"$all_stages")
fi

table=() failures=() started=$SECONDS

run_stage() {
    local name=$1 limit status begin=$SECONDS lines_before note=""
    limit=$(limit_of "$name")
    [ -n "$limit" ] || die "no such stage: $name (there are: $(awk 'NF { printf "%s ", $1 }' <<<"$all_stages"))"
    lines_before=$(wc -l <"$CAIRN_COUNTS")
    say ""
    say "==== $name (at $(minutes $((begin - started))), limit $(minutes "$limit")) ===="
    export CAIRN_SKIP_REASON="$logs/$name.skip"
    set +e
    timeout --kill-after=30 "$limit" "scripts/stages/$name.sh" 2>&1 </dev/null | watched "$logs/$name.log"
    status=${PIPESTATUS[0]}
    set -e
    if ! [ -t 1 ] && [ -z "${VERBOSE:-}" ]; then
        tail -n "$([ "$status" -eq 0 ] && say 3 || say 60)" "$logs/$name.log"
    fi
    case $status in
        0) note=passed ;;
        77) note="skipped: $(cat "$CAIRN_SKIP_REASON" 2>/dev/null)" ;;
        124 | 137) note="FAILED: not done within $(minutes "$limit")" ;;
        *) note="FAILED with status $status" ;;
    esac
    case $note in
        FAILED*)
            failures+=("$name")
            # A stage that fails without having counted a failed test (a build, a time-out) is one.
            if ! tail -n "+$((lines_before + 1))" "$CAIRN_COUNTS" | awk '{ n += $2 } END { exit n == 0 }'; then
                count 0 1
            fi
            ;;
    esac
    table+=("$(printf '%-14s %6s  %s' "$name" "$(minutes $((SECONDS - begin)))" "$note")")
}

for stage in "${stages[@]}"; do
    run_stage "$stage"
done

say ""
say "==== summary ($(minutes $((SECONDS - started)))) ===="
printf '%s\n' "${table[@]}"
if [ "${#failures[@]}" -gt 0 ]; then
    say ""
    say "failed stages: ${failures[*]}; again with: scripts/stages/NAME.sh; logs in $logs"
fi
awk '{ passed += $1; failed += $2 } END { printf "\n%d passed, %d failed\n", passed, failed }' "$CAIRN_COUNTS"
[ "${#failures[@]}" -eq 0 ]
