package noderuntime

import (
	"sort"
	"strings"
)

// mount says that what a container calls path is really at real.
type mount struct {
	path string // absolute, no trailing slash
	real string
}

// mounts translates a container's paths. Longest paths come first, so that the innermost mount wins.
type mounts []mount

func newMounts(ms []mount) mounts {
	sort.SliceStable(ms, func(i, j int) bool { return len(ms[i].path) > len(ms[j].path) })
	return ms
}

// translate replaces every mount path that stands in s at a path boundary: at the start or after one of `=,:`, white
// space, a quote or a bracket, or right after the `//` of a URL without host; and followed by the end of the path or
// by a slash. What has been put in is not looked at again.
func (ms mounts) translate(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); {
		if s[i] == '/' && startsPath(s, i) {
			if m, ok := ms.at(s[i:]); ok {
				out.WriteString(m.real)
				i += len(m.path)
				continue
			}
		}
		out.WriteByte(s[i])
		i++
	}
	return out.String()
}

// at finds the innermost mount that s, which begins a path, lies in.
func (ms mounts) at(s string) (mount, bool) {
	for _, m := range ms {
		if rest, ok := strings.CutPrefix(s, m.path); ok && (rest == "" || strings.IndexByte("/=,:;&|<> \t\n\"'`)]}", rest[0]) >= 0) {
			return m, true
		}
	}
	return mount{}, false
}

func startsPath(s string, i int) bool {
	return i == 0 || strings.IndexByte("=,:;&|<> \t\n\"'`([{", s[i-1]) >= 0 || strings.HasSuffix(s[:i], "://")
}
