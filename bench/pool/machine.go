package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine names what this runs on.
func machine(dir string) string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "model name"); ok {
			rest, _, _ = strings.Cut(rest, "\n")
			model = strings.TrimLeft(rest, "\t: ")
		}
	}
	release := "?"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	var mem unix.Sysinfo_t
	_ = unix.Sysinfo(&mem)
	return fmt.Sprintf("%d × %s, %s of memory, Linux %s, %s", runtime.NumCPU(), model, size(int64(mem.Totalram)*int64(mem.Unit)), release, runtime.Version())
}

// fileSystem names the file system that a directory is on.
func fileSystem(dir string) string {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return ""
	}
	switch int64(s.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	}
	return fmt.Sprintf("file system %#x", s.Type)
}

// checkSpace refuses a run that would fill the disk.
func (b *bench) checkSpace() error {
	var s unix.Statfs_t
	if err := unix.Statfs(b.dir, &s); err != nil {
		return fmt.Errorf("%s: %w", b.dir, err)
	}
	need := b.device + b.raw + b.volume + 6*b.column + b.indexed/64 // pages of the index row, and the headers of its log
	if have := int64(s.Bavail) * int64(s.Bsize); have < need+need/8 {
		return fmt.Errorf("%s has %s left, this run needs %s", b.dir, size(have), size(need+need/8))
	}
	return nil
}

// ticks is CPU time as /proc counts it.
const tick = 10 * time.Millisecond

// system is the CPU time that the machine has spent so far.
type system struct {
	busy   time.Duration // all of it, interrupts included
	others time.Duration // processes other than this one, without the kernel's threads
	stolen time.Duration // taken by other machines of the host
}

func readSystem() (s system) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return s
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:] {
		var n int64
		fmt.Sscan(f, &n)
		switch i {
		case 3, 4, 8, 9: // idle, iowait; guest is in user already
		case 7:
			s.stolen = time.Duration(n) * tick
		default:
			s.busy += time.Duration(n) * tick
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/stat")
	self := fmt.Sprintf("/proc/%d/stat", os.Getpid())
	for _, path := range processes {
		if path == self {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, rest, ok := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		const kernelThread = 0x00200000
		var flags uint64
		if !ok || len(f) < 15 {
			continue
		}
		if fmt.Sscan(f[6], &flags); flags&kernelThread != 0 {
			continue
		}
		for _, i := range []int{11, 12, 13, 14} { // user and system, of itself and of children that ended
			var n int64
			fmt.Sscan(f[i], &n)
			s.others += time.Duration(n) * tick
		}
	}
	return s
}

// load says how busy others kept the machine between two readings.
func load(from, to system, took time.Duration) string {
	all := float64(took) * float64(runtime.NumCPU())
	return fmt.Sprintf("other processes took %.0f %% of the machine, other machines of the host %.0f %%",
		100*float64(max(0, to.others-from.others))/all, 100*float64(to.stolen-from.stolen)/all)
}

// size prints a number of bytes.
func size(n int64) string {
	for _, u := range []struct {
		bytes int64
		name  string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.bytes {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(u.bytes)), ".0") + " " + u.name
		}
	}
	return fmt.Sprintf("%d B", n)
}
