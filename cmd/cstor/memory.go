package main

import (
	"bufio"
	"math"
	"math/bits"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// memory is what a pool's process does with the memory that it has.
type memory struct {
	limit  int64  // bytes that it may take
	source string // who says so, empty: nobody
	soft   int64  // from which on garbage is collected as often as it takes; 0: the runtime knows from GOMEMLIMIT

	pageCache int64 // see pool.Options.PageCacheBytes
	entries   int   // see pool.Options.DeltaEntries
	outbox    int64 // see replica.Config.OutboxBytes
}

const (
	poolMemory = 256 << 20 // what a pool's process keeps to if nobody says a limit

	entryBytes = 128     // what the pool's tables take for each of DeltaEntries
	minEntries = 1 << 15 // the largest write is one unit of the log, which is a quarter
	maxEntries = 1 << 20 // bounds what is replayed, and how long a drain takes
)

// limits are what is known about the memory that the process may take; 0: nothing.
type limits struct {
	runtime   int64 // GOMEMLIMIT
	container int64 // the limit of the pool's container
	cgroup    int64
}

// planMemory shares out the memory of a pool's process: a quarter is for what is kept of the index and an eighth for the tables
// of updates, whose chunks may take two times as much; an eighth is for what waits to be sent. The rest is for buffers and garbage.
func planMemory(l limits) memory {
	m := memory{limit: poolMemory, soft: poolMemory}
	set := func(bytes int64, source string) {
		if bytes > 0 && (m.source == "" || bytes < m.limit) {
			m.limit, m.source, m.soft = bytes, source, bytes/10*9
		}
	}
	set(l.container, "limit of the container")
	set(l.cgroup, "cgroup")
	set(l.runtime, "GOMEMLIMIT")
	if l.runtime > 0 {
		m.soft = 0
	}
	m.pageCache = m.limit / 4
	entries := min(max(m.limit/8/entryBytes, minEntries), maxEntries)
	m.entries = 1 << (bits.Len64(uint64(entries)) - 1)
	m.outbox = m.limit / 8
	return m
}

// memoryLimits looks for limits of this process.
func memoryLimits() limits {
	var l limits
	if n := debug.SetMemoryLimit(-1); n < math.MaxInt64 {
		l.runtime = n
	}
	l.container, _ = strconv.ParseInt(os.Getenv(cstorv1.EnvMemoryLimit), 10, 64) // none, or not ours: no limit
	l.cgroup = cgroupLimit("/")
	return l
}

// cgroupLimit returns the least limit of the groups that the process is in, 0 if there is none. A container sees its group as
// the root of the tree, or by the name that the host has for it.
func cgroupLimit(root string) (limit int64) {
	group := map[string]string{"": "/", "memory": "/"} // by controller; "" is the unified hierarchy
	if f, err := os.Open(filepath.Join(root, "proc/self/cgroup")); err == nil {
		for s := bufio.NewScanner(f); s.Scan(); {
			if part := strings.SplitN(s.Text(), ":", 3); len(part) == 3 {
				for _, controller := range strings.Split(part[1], ",") {
					group[controller] = path.Clean("/" + part[2])
				}
			}
		}
		f.Close()
	}
	look := func(tree, name, file string) {
		for ; ; name = path.Dir(name) {
			text, _ := os.ReadFile(filepath.Join(root, tree, name, file))
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err == nil && n > 0 && n < 1<<60 && (limit == 0 || n < limit) { // version 1 says a huge number for none
				limit = n
			}
			if name == "/" {
				return
			}
		}
	}
	look("sys/fs/cgroup", group[""], "memory.max")
	look("sys/fs/cgroup/memory", group["memory"], "memory.limit_in_bytes")
	return limit
}
