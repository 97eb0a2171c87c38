package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// columns are several files that are written to in turn, as the devices of a raid group are.
type columns struct {
	files []*os.File
	each  int64 // bytes
	piece int64 // bytes written to one before the next one's turn
}

func openColumns(paths []string, each, piece int64, m mode) (*columns, error) {
	c := &columns{each: each, piece: piece}
	flags := os.O_RDWR
	if m == direct {
		flags |= unix.O_DIRECT
	}
	for _, path := range paths {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			c.Close()
			return nil, err
		}
		c.files = append(c.files, f)
	}
	return c, nil
}

func (c *columns) at(off int64) (int, int64) {
	n := off / c.piece
	k := int64(len(c.files))
	return int(c.files[n%k].Fd()), n / k * c.piece
}

func (c *columns) size() int64 { return c.each / c.piece * c.piece * int64(len(c.files)) }

func (c *columns) begin(*job) error { return c.all(forget) }

func (c *columns) settle(*job) error {
	return c.all(func(f *os.File) error { return unix.Fdatasync(int(f.Fd())) })
}

func (c *columns) all(do func(*os.File) error) error {
	for _, f := range c.files {
		if err := do(f); err != nil {
			return err
		}
	}
	return nil
}

func (c *columns) Close() error {
	for _, f := range c.files {
		f.Close()
	}
	return nil
}

// raidz2 is sequential writes to a group of four data and two parity devices. All six are files on one disk: what
// counts is how fast it takes the bytes that are moved, parity, headers and index included, and beside it pieces of the
// same size written to six files at once.
func (b *bench) raidz2() error {
	const devices, data = 6, 4
	var paths []string
	for i := range devices {
		path, err := b.prepare(fmt.Sprintf("column%d.img", i), b.column)
		if err != nil {
			return err
		}
		paths = append(paths, path)
	}
	for _, m := range b.modes() {
		for _, depth := range []int{1, 8} {
			if err := b.raidz2With(m, paths, depth, int64(depth*128*kib/data)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) raidz2With(m mode, paths []string, depth int, piece int64) error {
	e, err := createOn(m, raid.RAIDZ2, options(), paths...)
	if err != nil {
		return err
	}
	defer e.p.Close()
	volume := e.p.Stats().Capacity / 2 &^ (1<<20 - 1)
	r, err := e.p.CreateReplica("v", volume)
	if err != nil {
		return err
	}
	w := newWriter(r, depth, 128*kib/block.Size, uint64(volume/block.Size), false, b.seed)
	var raw []string
	for i := range paths { // the pool has the others
		path, err := b.prepare(fmt.Sprintf("raw%d.img", i), b.raw/8)
		if err != nil {
			return err
		}
		raw = append(raw, path)
	}
	c, err := openColumns(raw, b.raw/8, piece, m)
	if err != nil {
		return err
	}
	defer c.Close()
	j := job{mode: m, bytes: int(piece), depth: len(paths), write: true}
	if m == buffered {
		j.limit = c.size() // what is dirty in memory already would cost no more than a copy
	}
	what := fmt.Sprintf("raidz2 4+2, 128 KiB sequential write, depth %d", depth)
	out, err := b.compare(fmt.Sprintf("raidz2, depth %d, %v", depth, m), side{"ours", e.turn(w)}, side{"raw", j.turn(c)})
	if err != nil {
		return err
	}
	l := makeLine("raidz2", what, m.String(), megabytes, 1, out)
	l.ratio *= l.amp
	l.note = "ratio of bytes moved"
	b.table.add(l.aimRatio(0.80, "≥ %.2f raw"))
	return nil
}
