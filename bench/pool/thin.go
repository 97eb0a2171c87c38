package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// thin is a device that is larger than the disk it is on. Blocks of data that it recognises, since they are one of a
// few patterns, take a byte each; everything else, which is all that the engine writes for itself, is kept in a sparse
// file. Neither adds to the memory that only this process uses.
type thin struct {
	name string
	size int64
	meta disk.Device
	ids  []byte // by block: number of the pattern plus one; 0: what meta has
	lazy bool   // in memory, and flushes do nothing: for what only counts, and for waits that are the engine's own
}

const (
	patterns   = 64
	patternTag = 0x6e72657474617024 // "$pattern"
)

var patternData, patternSums = func() ([]byte, []uint32) {
	b := disk.Buffer(patterns * block.Size)
	rand.NewChaCha8([32]byte{7}).Read(b)
	s := make([]uint32, patterns)
	for i := range s {
		p := b[i*block.Size : (i+1)*block.Size]
		binary.LittleEndian.PutUint64(p, patternTag)
		p[8] = byte(i)
		s[i] = block.Sum(p)
	}
	return b, s
}()

// patternOf returns which pattern a block is, -1 if none.
func patternOf(b []byte) int {
	if binary.LittleEndian.Uint64(b) != patternTag || b[8] >= patterns {
		return -1
	}
	i := int(b[8])
	if !bytes.Equal(b, patternData[i*block.Size:(i+1)*block.Size]) {
		return -1
	}
	return i
}

func newThin(path string, n int64, lazy bool) (*thin, error) {
	t := &thin{name: path, size: n &^ (1<<20 - 1), lazy: lazy}
	ids, err := inMemory(path + ".ids") // a fault in a page of a file on disk would wait for its journal
	if err != nil {
		return nil, err
	}
	defer ids.Close()
	if err := ids.Truncate(t.size / block.Size); err != nil {
		return nil, err
	}
	if t.ids, err = unix.Mmap(int(ids.Fd()), 0, int(t.size/block.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map %s: %w", ids.Name(), err)
	}
	meta, err := t.scratch(path)
	if err != nil {
		return nil, err
	}
	defer meta.Close()
	if err := meta.Truncate(t.size); err != nil {
		return nil, err
	}
	t.meta, err = disk.Open(fmt.Sprintf("/proc/self/fd/%d", meta.Fd()), disk.Options{}) // as a pool has it
	return t, err
}

// scratch returns a file that nobody else finds.
func (t *thin) scratch(path string) (*os.File, error) {
	if t.lazy {
		return inMemory(path)
	}
	f, err := os.Create(path)
	if err == nil {
		os.Remove(path)
	}
	return f, err
}

func inMemory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate("thin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (t *thin) ReadAt(b []byte, off int64) error {
	for at := 0; at < len(b); {
		k := (off + int64(at)) / block.Size
		if id := t.ids[k]; id != 0 {
			copy(b[at:at+block.Size], patternData[int(id-1)*block.Size:])
			at += block.Size
			continue
		}
		to := at + block.Size
		for to < len(b) && t.ids[(off+int64(to))/block.Size] == 0 {
			to += block.Size
		}
		if err := t.meta.ReadAt(b[at:to], off+int64(at)); err != nil {
			return err
		}
		at = to
	}
	return nil
}

func (t *thin) WritevAt(bufs [][]byte, off int64) error {
	whole := true
	for _, b := range bufs {
		whole = whole && len(b)%block.Size == 0
	}
	if !whole {
		bufs = [][]byte{bytes.Join(bufs, nil)}
	}
	for _, b := range bufs {
		for at := 0; at < len(b); {
			k := (off + int64(at)) / block.Size
			if id := patternOf(b[at : at+block.Size]); id >= 0 {
				t.ids[k] = byte(id + 1)
				at += block.Size
				continue
			}
			to := at
			for to < len(b) && patternOf(b[to:to+block.Size]) < 0 {
				t.ids[(off+int64(to))/block.Size] = 0
				to += block.Size
			}
			if err := t.meta.WritevAt([][]byte{b[at:to]}, off+int64(at)); err != nil {
				return err
			}
			at = to
		}
		off += int64(len(b))
	}
	return nil
}

func (t *thin) Flush() error { return t.meta.Flush() }

// Discard gives the space of metadata back to the disk.
func (t *thin) Discard(off, length int64) error { return t.meta.Discard(off, length) }

func (t *thin) Size() int64  { return t.size }
func (t *thin) Name() string { return t.name }

func (t *thin) Close() error {
	return errors.Join(unix.Munmap(t.ids), t.meta.Close())
}
