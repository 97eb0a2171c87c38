package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// mode says whether I/O goes through the page cache.
type mode bool

const (
	direct   mode = true
	buffered mode = false
)

func (m mode) String() string {
	if m == direct {
		return "O_DIRECT"
	}
	return "buffered"
}

// modes returns the modes that the file system in use has.
func (b *bench) modes() []mode {
	path := b.path("probe")
	defer os.Remove(path)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT, 0o644)
	if err != nil {
		b.say("no O_DIRECT here: %v", err)
		return []mode{buffered}
	}
	unix.Close(fd)
	return []mode{direct, buffered}
}

// incompressible is what is written, from random places.
var incompressible = func() []byte {
	b := disk.Buffer(4 << 20)
	rand.NewChaCha8([32]byte{42}).Read(b)
	return b
}()

// compressible is what compression makes smaller, from random places: half of each block is text of a few words.
var compressible, compressibleSums = func() ([]byte, []uint32) {
	b := bytes.Clone(incompressible)
	rng := rand.New(rand.NewPCG(3, 3))
	words := strings.Fields("the quick brown fox jumps over a lazy dog and lorem ipsum dolor sit amet while nobody looks")
	sums := make([]uint32, len(b)/block.Size)
	for i := range sums {
		at := b[i*block.Size : (i+1)*block.Size]
		for text := at[:block.Size/2]; len(text) > 0; {
			text = text[copy(text, words[rng.IntN(len(words))]+" "):]
		}
		sums[i] = block.Sum(at)
	}
	return b, sums
}()

// prepare makes a file of n bytes, all of them written, so that it behaves like a device: writing to it changes nothing
// in the file system.
func (b *bench) prepare(name string, n int64) (path string, err error) {
	path = b.path(name)
	done, known := b.prepared[name]
	if st, err := os.Stat(path); err == nil && st.Size() == n && (done || !known && b.keep && st.Sys().(*syscall.Stat_t).Blocks*512 >= n) {
		b.prepared[name] = true
		return path, nil
	}
	b.say("preparing %s of %s", path, size(n))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for off := int64(0); off < n; off += int64(len(incompressible)) {
		if _, err := f.WriteAt(incompressible[:min(int64(len(incompressible)), n-off)], off); err != nil {
			return "", fmt.Errorf("prepare: %w", err)
		}
		if off%(1<<30) == 0 { // not more dirty pages than others can bear
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				return "", fmt.Errorf("prepare: %w", err)
			}
		}
	}
	b.prepared[name] = true
	return path, forget(f)
}

// forget writes what is cached of a file to the device and drops it from memory.
func forget(f *os.File) error {
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// forgetPath is forget for a file that somebody else has open.
func forgetPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return forget(f)
}

// job is I/O that one side does without the engine.
type job struct {
	mode   mode
	bytes  int
	depth  int
	write  bool
	random bool
	flush  bool // fdatasync after each request
	seed   uint64
	limit  int64 // bytes after which a turn is over; what is cached has to be written within it
}

// target is where a job's requests go.
type target interface {
	// at returns the descriptor and the offset in it of an offset in the whole.
	at(off int64) (fd int, in int64)
	size() int64
	// begin is called before each turn, settle after it and within its time.
	begin(j *job) error
	settle(j *job) error
}

// turn returns a function that works on t for a while.
func (j job) turn(t target) func(time.Duration) (sample, error) {
	var next atomic.Int64
	turns := uint64(0)
	return func(d time.Duration) (sample, error) {
		if err := t.begin(&j); err != nil {
			return sample{}, err
		}
		turns++
		var mu sync.Mutex
		var total sample
		var failed error
		var wg sync.WaitGroup
		begin := time.Now()
		for w := range j.depth {
			wg.Go(func() {
				s, err := j.work(t, rand.New(rand.NewPCG(j.seed+turns, uint64(w))), &next, begin.Add(d), j.limit/int64(j.depth))
				mu.Lock()
				defer mu.Unlock()
				total.add(s)
				if failed == nil {
					failed = err
				}
			})
		}
		wg.Wait()
		if failed == nil && j.write && !j.flush {
			failed = t.settle(&j)
		}
		total.took = time.Since(begin)
		return total, failed
	}
}

func (j *job) work(t target, rng *rand.Rand, next *atomic.Int64, end time.Time, limit int64) (s sample, err error) {
	buf := disk.Buffer(j.bytes)
	copy(buf, incompressible[rng.IntN(1024)*4096:])
	n := int64(j.bytes)
	slots := t.size() / n
	for at := time.Now(); at.Before(end) && (limit == 0 || s.bytes < limit); {
		off := (next.Add(1) - 1) % slots * n
		if j.random {
			off = rng.Int64N(slots) * n
		}
		fd, in := t.at(off)
		if j.write {
			if _, err = unix.Pwrite(fd, buf, in); err == nil && j.flush {
				err = unix.Fdatasync(fd)
			}
		} else {
			_, err = unix.Pread(fd, buf, in)
		}
		if err != nil {
			return s, fmt.Errorf("at %d: %w", off, err)
		}
		now := time.Now()
		s.longest = max(s.longest, now.Sub(at))
		at = now
		s.ops++
		s.bytes += n
	}
	return s, nil
}

// rawDevice is a file all of which is written.
type rawDevice struct {
	f     *os.File
	bytes int64
}

func (b *bench) rawDevice(m mode) (*rawDevice, error) {
	path, err := b.prepare("raw.img", b.raw)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDWR
	if m == direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	return &rawDevice{f, b.raw}, nil
}

func (r *rawDevice) at(off int64) (int, int64) { return int(r.f.Fd()), off }
func (r *rawDevice) size() int64               { return r.bytes }
func (r *rawDevice) begin(*job) error          { return forget(r.f) }
func (r *rawDevice) settle(*job) error         { return unix.Fdatasync(int(r.f.Fd())) }
func (r *rawDevice) Close() error              { return r.f.Close() }

// fileBytes is the size of one file of a directory of files.
const fileBytes = 64 << 20

// directory is a thin volume the simple way: a directory of sparse files that together are the volume.
type directory struct {
	dir   string
	files []*os.File
	bytes int64
	full  bool
}

func (b *bench) directory(m mode) (*directory, error) {
	d := &directory{dir: b.path("files"), bytes: b.volume}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, err
	}
	flags := os.O_RDWR | os.O_CREATE
	if m == direct {
		flags |= unix.O_DIRECT
	}
	for i := int64(0); i*fileBytes < d.bytes; i++ {
		f, err := os.OpenFile(filepath.Join(d.dir, fmt.Sprintf("%05d", i)), flags, 0o644)
		if err != nil {
			d.Close()
			return nil, err
		}
		d.files = append(d.files, f)
	}
	return d, nil
}

func (d *directory) at(off int64) (int, int64) {
	return int(d.files[off/fileBytes].Fd()), off % fileBytes
}
func (d *directory) size() int64 { return d.bytes }

// begin makes the volume empty before writes, and full and cold before reads.
func (d *directory) begin(j *job) error {
	for i, f := range d.files {
		n := min(fileBytes, d.bytes-int64(i)*fileBytes)
		if j.write {
			if err := f.Truncate(0); err != nil {
				return err
			}
			if err := f.Truncate(n); err != nil {
				return err
			}
			continue
		}
		for off := int64(0); !d.full && off < n; off += int64(len(incompressible)) {
			if _, err := f.WriteAt(incompressible[:min(int64(len(incompressible)), n-off)], off); err != nil {
				return err
			}
		}
		if err := forget(f); err != nil {
			return err
		}
	}
	d.full = !j.write
	return nil
}

func (d *directory) settle(*job) error {
	for _, f := range d.files {
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}

func (d *directory) Close() error {
	for _, f := range d.files {
		f.Close()
	}
	return os.RemoveAll(d.dir)
}
