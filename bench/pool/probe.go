package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

// probe writes beside what is measured, from a process of its own: requests as large as a batch, one every few
// milliseconds, to files of its own on the same disk and to memory. How long these take is what the machine does to
// requests while the engine works; stalls of the engine are to be judged beside that.
type probe struct {
	cmd  *exec.Cmd
	quit io.Closer
	out  *json.Decoder
}

// probed is what became of the requests of one kind.
type probed struct {
	What          string
	Longest, Most time.Duration // Most: 99.9 % took no longer
}

const (
	probeVariable = "CSTOR_BENCH_PROBE" // directory, in the environment of such a process
	probeBytes    = 128 << 10
	probeFile     = 64 << 20
	probePause    = 4 * time.Millisecond
	probeFlush    = 250 * time.Millisecond
)

func (b *bench) startProbe() (*probe, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), probeVariable+"="+b.dir)
	cmd.Stderr = os.Stderr
	quit, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	p := &probe{cmd: cmd, quit: quit, out: json.NewDecoder(out)}
	var ready bool
	if err := p.out.Decode(&ready); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	return p, nil
}

// stop ends the probe and says what it saw.
func (p *probe) stop() (note string, err error) {
	p.quit.Close()
	var all []probed
	err = p.out.Decode(&all)
	if e := p.cmd.Wait(); err == nil {
		err = e
	}
	if err != nil {
		return "", fmt.Errorf("probe: %w", err)
	}
	var parts []string
	for _, x := range all {
		parts = append(parts, fmt.Sprintf("%s %s (99.9 %%: %s)", x.What, milliseconds(x.Longest), milliseconds(x.Most)))
	}
	return "longest of a probe beside it, ms: " + strings.Join(parts, ", "), nil
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/1e6) }

// probing does what the process of a probe does, until its input ends; false in any other process.
func probing() bool {
	dir := os.Getenv(probeVariable)
	if dir == "" {
		return false
	}
	if err := probeIn(dir); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
	return true
}

func probeIn(dir string) error {
	direct, err := probeTarget(filepath.Join(dir, "probe-direct"), unix.O_DIRECT)
	if err != nil {
		return err
	}
	buffered, err := probeTarget(filepath.Join(dir, "probe-buffered"), 0)
	if err != nil {
		return err
	}
	memory, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	kinds := []probed{{What: "O_DIRECT"}, {What: "buffered, flushed now and then"}, {What: "memory"}}
	fds := []int{direct, buffered, memory}
	fmt.Println("true")
	quit := make(chan struct{})
	failed := make([]error, len(kinds)+1)
	var all sync.WaitGroup
	for i := range kinds {
		all.Go(func() { failed[i] = kinds[i].watch(fds[i], quit) })
	}
	all.Go(func() {
		for t := time.NewTicker(probeFlush); failed[len(kinds)] == nil; {
			select {
			case <-quit:
				return
			case <-t.C:
				failed[len(kinds)] = unix.Fdatasync(buffered)
			}
		}
	})
	_, _ = io.Copy(io.Discard, os.Stdin)
	close(quit)
	all.Wait()
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(kinds)
}

// probeTarget makes a file all of which is written, which nobody else finds. Without O_DIRECT here it is buffered.
func probeTarget(path string, flags int) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|flags, 0o644)
	if err != nil {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT, 0o644)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	defer os.Remove(path)
	buf := disk.Buffer(probeBytes)
	for off := int64(0); off < probeFile; off += probeBytes {
		if _, err := unix.Pwrite(fd, buf, off); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
	}
	return fd, unix.Fdatasync(fd)
}

// watch writes until quit is closed.
func (x *probed) watch(fd int, quit chan struct{}) error {
	buf := disk.Buffer(probeBytes)
	copy(buf, incompressible)
	var took []time.Duration
	for t, off := time.NewTicker(probePause), int64(0); ; off = (off + probeBytes) % probeFile {
		select {
		case <-quit:
			if slices.Sort(took); len(took) > 0 {
				x.Longest, x.Most = took[len(took)-1], took[len(took)*999/1000]
			}
			return nil
		case <-t.C:
			begin := time.Now()
			if _, err := unix.Pwrite(fd, buf, off); err != nil {
				return fmt.Errorf("%s: %w", x.What, err)
			}
			took = append(took, time.Since(begin))
		}
	}
}
