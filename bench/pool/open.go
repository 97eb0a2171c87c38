package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// childVariable tells a process of this program that it is one that writes until it is killed, and what.
const childVariable = "CSTOR_BENCH_WRITER"

type doomed struct {
	Path   string
	Create bool
	Volume int64
	Bytes  int64 // after which it says so and goes on
	Seed   uint64
}

// child is what such a process does; false in any other.
func child() bool {
	if probing() {
		return true
	}
	spec := os.Getenv(childVariable)
	if spec == "" {
		return false
	}
	var d doomed
	err := json.Unmarshal([]byte(spec), &d)
	if err == nil {
		err = d.write()
	}
	fmt.Println("failed:", err)
	return true
}

func (d *doomed) write() error {
	e := &engine{c: new(counters), paths: []string{d.Path}, mode: buffered}
	var err error
	if d.Create {
		if e, err = createOn(buffered, raid.Stripe, options(), d.Path); err != nil {
			return err
		}
		if _, err = e.p.CreateReplica("v", d.Volume); err != nil {
			return err
		}
	} else {
		devs, err := e.devices()
		if err != nil {
			return err
		}
		if e.p, err = pool.Open(devs, options()); err != nil {
			return err
		}
	}
	w := newWriter(e.p.Replica("v"), 32, 1, uint64(d.Volume/block.Size), true, d.Seed)
	var s sample
	for said := false; ; {
		if !said && s.bytes >= d.Bytes {
			said = true
			fmt.Println("written")
		}
		if err := w.apply(e.p, &s, false); err != nil {
			return err
		}
	}
}

// open is how long it takes to open a pool after its process was killed in the middle of small random writes, with
// nothing of the device in memory.
func (b *bench) open() error {
	path, err := b.prepare("device.img", b.device)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(b.seed, 2))
	var longest time.Duration
	var note string
	var cpu time.Duration
	for i := range 3 {
		d := doomed{Path: path, Create: i == 0, Volume: b.volume, Bytes: b.logged, Seed: b.seed + uint64(i)}
		if i > 0 {
			d.Bytes = min(b.logged, 1<<30)/8 + rng.Int64N(min(b.logged, 1<<30)) // another place between two checkpoints
		}
		if err := kill(d); err != nil {
			return err
		}
		if err := forgetPath(path); err != nil {
			return err
		}
		e := &engine{c: new(counters), paths: []string{path}, mode: buffered}
		devs, err := e.devices()
		if err != nil {
			return err
		}
		begin, from := time.Now(), cpuTime()
		if e.p, err = pool.Open(devs, options()); err != nil {
			return err
		}
		took := time.Since(begin)
		cpu = max(cpu, cpuTime()-from)
		s := e.p.Stats()
		note += fmt.Sprintf("%v for %d batches, %d reads; ", took.Round(time.Millisecond), s.Replayed, e.c.reads.Load())
		longest = max(longest, took)
		b.say("open after a kill: %v, %d batches replayed", took, s.Replayed)
		if err := e.p.Close(); err != nil {
			return err
		}
	}
	b.table.add(line{
		row: "open", what: fmt.Sprintf("open after a kill, %s of 4 KiB writes since start", size(b.logged)), mode: buffered.String(),
		ours: longest.Round(time.Millisecond).String(), aim: "≤ 2 s", met: longest <= 2*time.Second,
		note: note + fmt.Sprintf("at most %v of CPU", cpu.Round(time.Millisecond)),
	})
	return nil
}

// kill starts a process that writes, and kills it when it has written enough.
func kill(d doomed) error {
	spec, err := json.Marshal(d)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+string(spec))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if err != nil || said != "written\n" {
		return fmt.Errorf("process that writes: %s %v", said, err)
	}
	return nil
}
