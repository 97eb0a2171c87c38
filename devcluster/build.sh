#!/bin/sh
# Builds the devcluster executable: build.sh [OUTPUT], by default bin/devcluster beside this directory.
# Kubernetes is compiled from source: the first build takes about ten minutes on two cores, later ones only link.
set -eu
cd "$(dirname "$0")"
output=${1:-../bin/devcluster}
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
v=k8s.io/component-base/version
ldflags="-s -w \
 -X $v.gitVersion=$version -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*} \
 -X $v.gitCommit=0000000000000000000000000000000000000000 -X $v.gitTreeState=clean \
 -X $v.buildDate=1970-01-01T00:00:00Z"
mkdir -p "$(dirname "$output")"
rm -f "$output.new"

# Stale packages are those for which Go would have to run the compiler. No -trimpath: with the same flags as
# `go test` both share the build cache.
total=$(go list -deps . | wc -l)
stale=$(go list -deps -f '{{if .Stale}}x{{end}}' . | grep -c x || true)
if [ "$stale" -gt 200 ]; then
	echo "devcluster: first build, $stale of $total packages to compile: about ten minutes on two cores" >&2
fi
# -v names each package when it is compiled.
nice go build -v -ldflags "$ldflags" -o "$output.new" . 2>&1 |
	awk -v stale="$stale" '
		/^[a-zA-Z0-9._\/~-]+$/ { n++; if (n % 50 == 0) { print "devcluster: compiled " n " of " stale " packages"; fflush() } next }
		{ print; fflush() }' >&2
mv "$output.new" "$output"
