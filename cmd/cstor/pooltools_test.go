package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// makePool makes a mirror of two files in dir with a replica, kills it before its log is in the index, and leaves it as
// a and b.
func makePool(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var devs []disk.Device
	for _, name := range []string{"x", "y"} {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, nil, 0o600))
		must(os.Truncate(path, 16<<20))
		d, err := disk.Open(path, disk.Options{})
		must(err)
		devs = append(devs, d)
	}
	p, err := engine.Create([]engine.Group{{Kind: raid.Mirror, Devices: devs}}, engine.Config{Name: "cstor-1", Owner: "cspi-1"}, engine.Options{SegmentBytes: 256 << 10})
	must(err)
	r, err := p.CreateReplica("pvc-1", 8<<20)
	must(err)
	data := make([]byte, 40*block.Size)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(data[:20*block.Size])
	copy(data[20*block.Size:30*block.Size], bytes.Repeat([]byte("compresses well "), 10*block.Size/16))
	v := func(n uint64) block.Version { return block.Version{Epoch: 1, N: n} }
	must(r.Apply([]engine.Op{{Kind: engine.OpWrite, Block: 0, Count: 40, Version: v(1), Data: data}}))
	must(r.SetState([]byte("member of volume 1"), v(1)))
	must(r.Apply([]engine.Op{
		{Kind: engine.OpSnapshot, Name: "before", Version: v(1)},
		{Kind: engine.OpWrite, Block: 3, Count: 2, Version: v(2), Data: data[:2*block.Size]},
	}))
	_, err = p.Clone("copy", "pvc-1", "before")
	must(err)
	must(p.Close())
	devs = nil
	for _, name := range []string{"x", "y"} {
		d, err := disk.Open(filepath.Join(dir, name), disk.Options{})
		must(err)
		devs = append(devs, d)
	}
	p, err = engine.Open(devs, engine.Options{Manual: true}) // nothing is written but by the calls
	must(err)
	must(p.Replica("pvc-1").Apply([]engine.Op{
		{Kind: engine.OpWrite, Block: 600, Count: 2, Version: v(3), Data: data[:2*block.Size]},
		{Kind: engine.OpDiscard, Block: 1, Count: 1, Version: v(4)},
	}))
	must(p.Sync())
	must(p.Replica("pvc-1").Apply([]engine.Op{{Kind: engine.OpWrite, Block: 602, Count: 1, Version: v(5), Data: data[:block.Size]}}))
	for from, to := range map[string]string{"x": "a", "y": "b"} {
		b, err := os.ReadFile(filepath.Join(dir, from))
		must(err)
		must(os.WriteFile(filepath.Join(dir, to), b, 0o600))
	}
	must(p.Close())
}

var (
	guids   = regexp.MustCompile(`\b[0-9a-f]{32}\b`)
	numbers = regexp.MustCompile(`\b[0-9a-f]{16}\b`)
	random  = regexp.MustCompile(`(0x[0-9a-f]+ +\d+ +)[0-9a-f]{8}\b`)
	change  = regexp.MustCompile(`"change": \d+`)
	rootSum = regexp.MustCompile(`"sum": "[0-9a-f]{8}"`)
	headers = regexp.MustCompile(`header [0-9a-f]{8} after [0-9a-f]{8}|"(header|previous)": "[0-9a-f]{8}"`)
	sums    = regexp.MustCompile(`\b[0-9a-f]{8}\b`)
)

// steady replaces what is random by numbers in the order of their appearance, as wide.
func steady(s, dir string, known map[string]string) string {
	s = strings.ReplaceAll(s, dir+"/", "")
	number := func(x string) string {
		if known[x] == "" {
			known[x] = fmt.Sprintf("%0*d", len(x), len(known)+1)
		}
		return known[x]
	}
	s = numbers.ReplaceAllStringFunc(guids.ReplaceAllStringFunc(s, number), number)
	s = change.ReplaceAllString(random.ReplaceAllString(s, "$1--------"), `"change": 0`)
	s = headers.ReplaceAllStringFunc(s, func(x string) string { return sums.ReplaceAllStringFunc(x, number) })
	return rootSum.ReplaceAllString(s, `"sum": "--------"`)
}

// TestPoolTools runs the commands on a small pool, whole and damaged.
//
//	run ARGS      runs "cstor pool ARGS", with the devices' names replaced by their paths
//	flip DEVICE OFFSET    flips a bit
//	smash DEVICE OFFSET LENGTH    inverts bytes
//	zero DEVICE OFFSET LENGTH     clears bytes
//	cut DEVICE SIZE               makes it shorter
//	restore       brings the pool back as it was
func TestPoolTools(t *testing.T) {
	dir := t.TempDir() // its name in tables must not change their widths: devices are named relative to it
	makePool(t, dir)
	t.Chdir(dir)
	whole := map[string][]byte{}
	for _, name := range []string{"a", "b"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		whole[name] = b
	}
	other := make([]byte, 4<<20)
	copy(other, "XFSB")
	if err := os.WriteFile("foreign", other, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("small", other[:512<<10], 0o600); err != nil {
		t.Fatal(err)
	}
	known := map[string]string{}
	datadriven.RunTest(t, filepath.Join(home, "testdata", "pool.txt"), func(t *testing.T, d *datadriven.TestData) string {
		var args []string
		for _, a := range d.CmdArgs {
			args = append(args, a.String())
		}
		switch d.Cmd {
		case "restore":
			for name, b := range whole {
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			return ""
		case "flip":
			var off int64
			fmt.Sscan(args[1], &off)
			b, err := os.ReadFile(args[0])
			if err != nil {
				t.Fatal(err)
			}
			b[off] ^= 8
			if err := os.WriteFile(args[0], b, 0o600); err != nil {
				t.Fatal(err)
			}
			return ""
		case "smash", "zero":
			var off, n int
			fmt.Sscan(args[1]+" "+args[2], &off, &n)
			b, err := os.ReadFile(args[0])
			if err != nil {
				t.Fatal(err)
			}
			for i := off; i < off+n; i++ {
				if b[i] = ^b[i]; d.Cmd == "zero" {
					b[i] = 0
				}
			}
			if err := os.WriteFile(args[0], b, 0o600); err != nil {
				t.Fatal(err)
			}
			return ""
		case "cut":
			var size int64
			fmt.Sscan(args[1], &size)
			if err := os.Truncate(args[0], size); err != nil {
				t.Fatal(err)
			}
			return ""
		case "run":
			before := snapshotOf(t, "a", "b")
			code, out, errs := call(t, append([]string{"pool"}, args...)...)
			if now := snapshotOf(t, "a", "b"); now != before {
				t.Error("the devices changed")
			}
			return steady(fmt.Sprintf("%s%sexit %d\n", out, errs, code), dir, known)
		}
		d.Fatalf(t, "what is %s?", d.Cmd)
		return ""
	})
}

// home is where the tests run.
var home, _ = os.Getwd()

func snapshotOf(t *testing.T, names ...string) (s [2]uint32) {
	for i, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s[i] = block.Sum(b)
	}
	return s
}

func TestPoolToolsRefuseARunningPool(t *testing.T) {
	dir := t.TempDir()
	makePool(t, dir)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	d, err := disk.Open(a, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"inspect", "verify", "dump log"} {
		code, _, errs := call(t, append(append([]string{"pool"}, strings.Fields(args)...), b, a)...)
		if code != exitUsage || !strings.Contains(errs, "device "+a+" is in use by another process") {
			t.Error(args, code, errs)
		}
	}
	d.Close()
	if code, out, errs := call(t, "pool", "verify", b, a); code != 0 {
		t.Error(code, out, errs)
	}
}
