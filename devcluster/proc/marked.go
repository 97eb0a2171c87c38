package proc

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// Marked returns the processes other than this one whose environment carries owner's marker. Processes of other
// users cannot be read and are not ours.
func Marked(owner string) []int {
	marker := []byte(markerName + "=" + owner + "\x00")
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	var pids []int
	for _, f := range files {
		env, err := os.ReadFile(f)
		if err != nil || !bytes.HasPrefix(env, marker) && !bytes.Contains(env, append([]byte{0}, marker...)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// KillMarked kills every process that carries owner's marker: children of a supervisor that is gone, and children's
// children that left their process group. It returns how many it found.
func KillMarked(owner string) int {
	pids := Marked(owner)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return len(pids)
}
