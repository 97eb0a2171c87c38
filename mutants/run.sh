#!/bin/sh
# Breaks the code in one way after the other, in a copy, and expects the tests to notice.
# Usage: mutants/run.sh [patch...]; without arguments all of */mutants. A patch whose first line is "Killed by: go test …"
# has to make that command fail; the others, those of the replication core, its tests or the simulator.
# SEEDS is how many runs of the simulator each mutant has to survive to be called alive.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
[ $# -gt 0 ] || set -- "$root"/sim/mutants/*.patch "$root"/internal/*/mutants/*.patch
copy=$tmp/copy
alive=0

# failed prints which test a run that failed names, or with what it ended.
failed() {
	grep -m1 -oE -- '(--- FAIL: Test[A-Za-z]+(/[^ ]+)?|panic: .*)' "$tmp/out" | sed 's,--- FAIL: ,,' | cut -c1-140
}

for patch in "$@"; do
	name=$(basename "$patch" .patch)
	rm -rf "$copy"
	mkdir -p "$copy"
	cp "$root/go.mod" "$root/go.sum" "$copy/"
	cp -r "$root/sim" "$root/api" "$root/internal" "$copy/"
	if ! (cd "$copy" && git apply "$patch") >"$tmp/out" 2>&1; then
		echo "BROKEN $name: does not apply"
		alive=1
		continue
	fi
	command=$(sed -n '1s/^Killed by: //p' "$patch")
	packages="./internal/volume ./sim"
	[ -z "$command" ] || packages=$(printf '%s\n' "$command" | grep -oE '\./internal/[^ ]+')
	if ! (cd "$copy" && go vet $packages) >"$tmp/out" 2>&1; then
		echo "BROKEN $name: does not build"
		cat "$tmp/out"
		alive=1
		continue
	fi
	by=
	if [ -n "$command" ]; then
		if ! (cd "$copy" && eval "$command -count=1") >"$tmp/out" 2>&1; then
			by=" $(failed)"
		elif grep -q 'no tests to run' "$tmp/out"; then
			echo "BROKEN $name: no such test: $command"
			alive=1
			continue
		fi
	else
		if ! (cd "$copy" && go test ./internal/volume) >"$tmp/out" 2>&1; then
			by=" $(failed)"
		fi
		if ! (cd "$copy" && go test ./sim -seeds "${SEEDS:-500}" -failures 1 -shrink 0) >"$tmp/out" 2>&1; then
			by="$by, $(grep -m1 -oE '(seed [0-9]+: .*|panic: .*|coverage: .*)' "$tmp/out" | cut -c1-140)"
		fi
	fi
	if [ -n "$by" ]; then
		echo "killed $name by:$by"
	else
		echo "ALIVE  $name"
		alive=1
	fi
done
exit $alive
