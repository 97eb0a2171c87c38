package proc

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start runs a shell script whose output goes to the returned file.
func start(t *testing.T, l *Launcher, script string) (*Process, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	f, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := l.Start(Spec{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Dir: t.TempDir(), Log: f})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(0) })
	return p, path
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func TestExit(t *testing.T) {
	l := NewLauncher(t.Name())
	p, _ := start(t, l, "exit 3")
	if e := p.Exit(); e.Code != 3 || e.Signal != 0 {
		t.Errorf("exit is %+v, want code 3", e)
	}
	p, _ = start(t, l, "kill -9 $$")
	if e := p.Exit(); e.Code != 137 || e.Signal != 9 {
		t.Errorf("exit is %+v, want signal 9", e)
	}
	p.Signal(syscall.SIGTERM) // after the end: nobody's pid
}

func TestStopKillsAfterGrace(t *testing.T) {
	p, log := start(t, NewLauncher(t.Name()), `trap "" TERM; echo up; while :; do sleep 1; done`)
	eventually(t, "the process to run", func() bool { b, _ := os.ReadFile(log); return len(b) > 0 })
	p.Stop(50 * time.Millisecond)
	if e := p.Exit(); e.Signal != int(syscall.SIGKILL) {
		t.Errorf("exit is %+v, want a kill", e)
	}
}

// When the leader ends, what it has started ends too.
func TestGroupEndsWithLeader(t *testing.T) {
	l := NewLauncher(t.Name() + t.TempDir())
	p, _ := start(t, l, `sleep 1000 & exit 0`)
	p.Exit()
	eventually(t, "the group to be gone", func() bool { return len(Marked(l.owner)) == 0 })
}

// A process that has left the group is found by its marker.
func TestKillMarked(t *testing.T) {
	if _, err := os.Stat("/usr/bin/setsid"); err != nil {
		t.Skip("no setsid program on this machine")
	}
	l := NewLauncher(t.Name() + t.TempDir())
	p, _ := start(t, l, `setsid sleep 1000 & wait`)
	eventually(t, "the child to leave the group", func() bool {
		for _, pid := range Marked(l.owner) {
			if pg, err := syscall.Getpgid(pid); err == nil && pid != p.Pid && pg == pid {
				return true
			}
		}
		return false
	})
	p.Signal(syscall.SIGKILL)
	p.Exit()
	if KillMarked(l.owner) == 0 {
		t.Error("nothing was found")
	}
	eventually(t, "the child to be gone", func() bool { return len(Marked(l.owner)) == 0 })
}

func TestTrimLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(s string) {
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.Repeat("a", 60) + strings.Repeat("b", 60))
	if err := TrimLog(path, 100); err != nil {
		t.Fatal(err)
	}
	write("c") // the writer goes on undisturbed
	old, _ := os.ReadFile(path + ".1")
	cur, _ := os.ReadFile(path)
	if string(old) != strings.Repeat("b", 50) || string(cur) != "c" {
		t.Errorf("old is %q, current %q", old, cur)
	}
}
