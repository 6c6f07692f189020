#!/usr/bin/env bash
# What one operation of the engine costs, counted: instructions (by valgrind), heap allocations, buffers,
# bytes copied, entries into the kernel, device commands, device bytes for each byte of a client. Fails when
# a figure is more than a tenth above benches/costs.txt.
#   WRITE=1   puts the figures into benches/costs.txt instead of comparing
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../lib.sh"
cd "$root"

scripts/packages.sh costs
build_release
program=$(target_dir)/release/examples/operation_costs
expected=benches/costs.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
measured=$work/costs.txt

# put LOAD "COUNT..." PATTERN OPTION...: those counts, as "LOAD COUNT FIGURE". The least of three runs: how many
# share a command depends a little on what else the machine does.
put() {
    local load=$1 names=$2 name
    shift 2
    for _ in 1 2 3; do
        "$program" "$@"
    done >"$work/json"
    for name in $names; do
        say "$load $name $(jq --slurp "map(.$name) | min" "$work/json")"
    done
}

# instructions LOAD PATTERN OPTION...: the difference of two runs, so that setting up does not count.
# Long copies are one instruction to some processors and one for each byte to valgrind: they are done by
# vectors, here as elsewhere.
instructions() {
    local load=$1 few=2000 many=10000 count
    shift
    export GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=0x7fffffff:glibc.cpu.x86_rep_stosb_threshold=0x7fffffff
    for count in "$few" "$many"; do
        valgrind --tool=callgrind --callgrind-out-file="$work/callgrind.$count" \
            "$program" "$@" --operations "$count" >/dev/null 2>"$work/log.$count" &
    done
    wait
    unset GLIBC_TUNABLES
    for count in "$few" "$many"; do
        awk '/Collected/ { n = $NF } END { if (!n) exit 1; print n }' "$work/log.$count" ||
            { cat "$work/log.$count" >&2; die "valgrind counted nothing"; }
    done | awk -v load="$load" -v operations=$((many - few)) \
        'NR == 1 { few = $1 } NR == 2 { printf "%s instructions %.0f\n", load, ($1 - few) / operations }'
}

{
    for pattern in randread randwrite create; do
        put "$pattern-32" "allocations buffers copied_bytes commands" "$pattern"
        instructions "$pattern-32" "$pattern"
    done
    for pattern in randread randwrite; do
        # One at a time, so that how many share an entry into the kernel is no matter of luck.
        put "$pattern-1" kernel_entries "$pattern" --depth 1 --operations 2000 --file "$work/pool"
    done
    put randread-32 read_amplification randread
    put half-full write_amplification randwrite --fill-percent 50 --overwrites 3 --operations 200000
} | tee "$measured"

if [ -n "${WRITE:-}" ]; then
    {
        say "# What an operation costs: load, what is counted, figure for each operation. Written by"
        say "#   WRITE=1 scripts/stages/costs.sh"
        cat "$measured"
    } >"$expected"
    exit 0
fi
# A tenth more, or a hundredth where next to nothing is expected.
compared=$(awk '
    NR == FNR { if ($1 !~ /^#/) expected[$1 " " $2] = $3; next }
    { key = $1 " " $2; seen[key] = 1 }
    !(key in expected) { print "bad: " key " is not in the list"; next }
    $3 > expected[key] * 1.1 + 0.01 { print "bad: " key " was " expected[key] " and is " $3; next }
    { print "good" }
    END { for (key in expected) if (!(key in seen)) print "bad: " key " was not measured" }
' "$expected" "$measured")
good=$(grep -c '^good' <<<"$compared" || true)
bad=$(grep -c '^bad' <<<"$compared" || true)
grep '^bad' <<<"$compared" || true
count "$good" "$bad"
say "$good figures at most a tenth above benches/costs.txt, $bad above"
[ "$bad" -eq 0 ] || die "an operation costs more than it did; if that is worth it: WRITE=1 scripts/stages/costs.sh"
