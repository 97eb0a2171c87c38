#!/bin/sh
# Breaks the core in one way after the other, in a copy, and expects the simulator or a transcript to notice.
# Usage: sim/mutants/run.sh [patch...]; SEEDS is how many runs each mutant has to survive to be called alive.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
[ $# -gt 0 ] || set -- "$here"/*.patch
alive=0
for patch in "$@"; do
	rm -rf "$tmp/copy"
	mkdir -p "$tmp/copy/internal"
	cp "$root/go.mod" "$root/go.sum" "$tmp/copy/"
	cp -r "$root/sim" "$tmp/copy/"
	cp -r "$root/internal/block" "$root/internal/volume" "$tmp/copy/internal/"
	(cd "$tmp/copy" && git apply "$patch")
	name=$(basename "$patch" .patch)
	if ! (cd "$tmp/copy" && go vet ./internal/volume ./sim) >"$tmp/out" 2>&1; then
		echo "BROKEN $name: does not build"
		cat "$tmp/out"
		alive=1
		continue
	fi
	by=
	if ! (cd "$tmp/copy" && go test ./internal/volume) >"$tmp/out" 2>&1; then
		by=" $(grep -oE -- '(FAIL: Test[A-Za-z]+(/[a-z0-9]+)?|panic: .*)' "$tmp/out" | sed 's,.*[/ ],,' | tail -n 1)"
	fi
	if ! (cd "$tmp/copy" && go test ./sim -seeds "${SEEDS:-500}" -failures 1) >"$tmp/out" 2>&1; then
		by="$by, $(grep -m1 -oE '(seed [0-9]+: .*|panic: .*|coverage: .*)' "$tmp/out" | cut -c1-140)"
	fi
	if [ -n "$by" ]; then
		echo "killed $name by:$by"
	else
		echo "ALIVE  $name"
		alive=1
	fi
done
exit $alive
