package pool

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
)

// This file has what an actor does to a replica's blocks.

// apply applies a random batch.
func (a *actor) apply() {
	name, r := a.pick()
	r = r.copy()
	var ops []Op
	data := 0
	for range 1 + a.rng.IntN(6) {
		o := Op{Version: a.version()}
		switch k := a.rng.IntN(24); {
		case k < 13:
			o.Kind = OpWrite
			o.Block, o.Count = a.extent(r, []int{1, 4, 40, 150}[a.rng.IntN(4)])
			o.Data = a.data(int(o.Count))
			data += int(o.Count)
			if a.rng.IntN(2) == 0 {
				o.Sums = sumsOf(o.Data)
			}
		case k < 17:
			o.Kind = OpDiscard
			o.Block, o.Count = a.extent(r, []int{1, 40, a.longest, 4000}[a.rng.IntN(4)])
		case k < 20 && len(r.snaps) < 10:
			o.Kind, o.Name = OpSnapshot, fmt.Sprint("s", a.rng.IntN(60))
			if r.find(o.Name) >= 0 || r.ahead(o.Version) {
				continue
			}
			a.cover["snapshots made"]++
		case k < 22 && len(r.snaps) > 0:
			o.Kind, o.Name = OpDeleteSnapshot, r.snaps[a.rng.IntN(len(r.snaps))].name
			if len(a.now.clonesOf(name, o.Name)) > 0 {
				if err := a.p.Replica(name).Apply([]Op{o}); !errors.Is(err, ErrInUse) && !errors.Is(err, ErrFailed) {
					a.fatalf("delete of snapshot %s in use: %v", o.Name, err)
				}
				a.cover["refused: in use"]++
				continue
			}
			a.cover["snapshots deleted"]++
			if data > 0 {
				a.cover["snapshots deleted under writes"]++
			}
		case k == 22 && a.rng.IntN(3) == 0:
			o.Kind, o.Size = OpResize, int64(1+a.rng.IntN(a.maxSize))*block.Size-int64(a.rng.IntN(8))*block.SectorSize
			a.cover["resized"]++
		default:
			o.Kind = OpMark
		}
		r.apply(&o)
		ops = append(ops, o)
	}
	if len(ops) > 0 {
		a.applyOps(name, ops, data)
	}
}

// applyOps applies operations, which write so many blocks.
func (a *actor) applyOps(name string, ops []Op, data int) bool {
	a.t.Helper()
	var accept []error
	if data > 0 { // what gives space back, or none takes, is always possible
		accept = append(accept, ErrNoSpace)
	}
	return a.didParts(fmt.Sprintf("apply to %s:%s", name, describe(ops)), false, name, a.parts(name, ops), func() error { return a.p.Replica(name).Apply(ops) }, accept...)
}

// parts divides a call of Apply into what is there or not after a crash.
func (a *actor) parts(name string, ops []Op) (all []atom) {
	kept := slices.Clone(ops)
	for i := range kept {
		if o := &kept[i]; o.Kind == OpWrite && o.Sums == nil {
			o.Sums = sumsOf(o.Data)
		}
		kept[i].Data = nil
	}
	r := a.now[name]
	limit := uint64(a.p.unitEntries())
	size, shown, from, need := r.size, len(r.snaps) > 0, 0, uint64(0)
	unit := func(ops []Op) {
		if len(ops) > 0 {
			all = append(all, atom{ops[len(ops)-1].Version, func(s refPool) {
				for i := range ops {
					s[name].apply(&ops[i])
				}
			}})
		}
	}
	// pieces of a long discard; the last one is the operation itself, if it is one
	pieces := func(b, left uint64, o *Op, whole bool) {
		step := uint64(block.ChunkBlocks)
		if half := limit / 2; half > 2*block.ChunkBlocks {
			step = (half - 2*block.ChunkBlocks) * block.ChunkBlocks
		}
		for left > 0 {
			b0, n := b, min(left, step-b%block.ChunkBlocks)
			last := n == left && whole
			x := atom{f: func(s refPool) {
				s[name].discard(b0, n, o.Version)
				if last {
					s[name].applied = o.Version
				}
			}}
			if last {
				x.applied = o.Version
			}
			all = append(all, x)
			b, left = b+n, left-n
		}
	}
	for i := range kept {
		o := &kept[i]
		n := uint64(0)
		switch o.Kind {
		case OpWrite:
			n = uint64(o.Count)
		case OpDiscard:
			n = entriesOfDiscard(o.Block, uint64(o.Count))
		}
		if shown {
			n *= 2
		}
		point := o.Kind >= OpSnapshot
		if need+n <= limit && !point {
			need += n
			continue
		}
		unit(kept[from:i])
		from, need = i, 0
		switch {
		case point:
			if o.Kind == OpResize {
				if keep := blocksOf(o.Size); o.Size < size {
					pieces(keep, blocksOf(size)-keep, o, false)
				}
				size = o.Size
			}
			unit(kept[i : i+1])
			shown = shown || o.Kind == OpSnapshot
			from = i + 1
		case n > limit && o.Kind == OpDiscard:
			pieces(o.Block, uint64(o.Count), o, true)
			from = i + 1
		default:
			need = n
		}
	}
	unit(kept[from:])
	return all
}

func describe(ops []Op) string {
	var b strings.Builder
	for _, o := range ops {
		switch o.Kind {
		case OpWrite:
			fmt.Fprintf(&b, " w%d+%d", o.Block, o.Count)
		case OpDiscard:
			fmt.Fprintf(&b, " d%d+%d", o.Block, o.Count)
		case OpSnapshot:
			fmt.Fprintf(&b, " +%s", o.Name)
		case OpDeleteSnapshot:
			fmt.Fprintf(&b, " -%s", o.Name)
		case OpResize:
			fmt.Fprintf(&b, " size%d", o.Size)
		}
		fmt.Fprintf(&b, "@%v", o.Version)
	}
	return b.String()
}

// merge plays a source whose chunk differs here and there from ours, in every way that a rebuild may meet. It lists
// newest versions only.
func (a *actor) merge() {
	name, r := a.pick()
	c := &Chunk{Index: uint64(a.rng.IntN(int((blocksOf(r.size) + block.ChunkBlocks - 1) / block.ChunkBlocks))), Scan: r.applied}
	switch k := a.rng.IntN(3); {
	case k == 0 && r.applied.N > 20:
		c.Scan.N -= uint64(a.rng.IntN(20))
	case k == 1 && a.epoch > 0: // the source is ahead of the live writes
		c.Scan = block.Version{Epoch: a.epoch, N: a.n + 5}
	}
	stale := false
	whole := a.rng.IntN(6)
	for i := range block.ChunkBlocks {
		b := c.Index*block.ChunkBlocks + uint64(i)
		c.Sums[i] = block.ZeroSum
		if b >= blocksOf(r.size) {
			break
		}
		local := r.head(b)
		c.Versions[i], c.Sums[i], c.Stored[i] = local.ver, local.sum, local.stored
		k := a.rng.IntN(8)
		switch {
		case whole == 0: // the source discarded or never had all of it
			c.Versions[i], c.Sums[i], c.Stored[i] = block.Version{}, block.ZeroSum, false
			if c.Scan.N%2 == 0 {
				c.Versions[i] = block.Version{Epoch: 1, N: 1}
			}
		case k < 5 || whole > 2 && a.rng.IntN(10) > 0:
		case k == 5:
			c.Versions[i], c.Sums[i], c.Stored[i] = block.Version{}, block.ZeroSum, false
		default:
			v := block.Version{Epoch: 1 + a.rng.Uint64N(a.epoch+1), N: 1 + a.rng.Uint64N(a.n+4)}
			if a.far && k == 7 {
				v.N = 1<<41 + a.rng.Uint64N(1<<40)
			}
			if r.knows(b, v) {
				continue
			}
			c.Versions[i], c.Sums[i], c.Stored[i] = v, block.ZeroSum, false
			if k == 6 {
				continue
			}
			d := a.data(1)
			c.Stored[i], c.Sums[i] = true, block.Sum(d)
			if a.rng.IntN(2000) == 0 {
				stale = stale || block.Resolve(local.ver, c.Versions[i], c.Scan) == block.Take
				continue
			}
			c.Data, c.DataOf = append(c.Data, d...), append(c.DataOf, uint16(i))
		}
	}
	what := fmt.Sprintf("merge chunk %d of %s, scan %v", c.Index, name, c.Scan)
	accept := []error{ErrNoSpace}
	if stale {
		accept = append(accept, ErrStaleChunk)
	}
	ok := a.did(what, false, func(s refPool) { s[name].merge(c) }, func() error {
		_, err := a.p.Replica(name).Merge(c)
		return err
	}, accept...)
	if ok && stale {
		a.fatalf("%s: data of the chunk is missing, and that was not noticed", what)
	}
	if ok && len(r.snaps) > 0 {
		a.cover["merges under snapshots"]++
	}
	c.Data = nil
}

// knows reports whether a block has, or shows, a version.
func (r *refReplica) knows(b uint64, v block.Version) bool {
	if slices.ContainsFunc(r.blocks[b].own, func(x refVersion) bool { return x.ver == v }) {
		return true
	}
	return r.origin != "" && r.in[r.origin].at(b, r.from.ver).ver == v
}

// read compares a random range of a replica or snapshot, or a whole chunk as a rebuild reads it, with the model.
func (a *actor) read() {
	name, m := a.pick()
	r := a.p.Replica(name)
	if a.rng.IntN(4) == 0 {
		a.readChunk(r, m)
		return
	}
	at, snap := newestVersion, ""
	b, n := a.extent(m, []int{1, 8, 600}[a.rng.IntN(3)])
	dst, sums := make([]byte, int(n)*block.Size), make([]uint32, n)
	var err error
	if len(m.snaps) > 0 && a.rng.IntN(2) == 0 {
		s := m.snaps[a.rng.IntN(len(m.snaps))]
		at, snap = s.ver, s.name
		n = uint32(min(uint64(n), blocksOf(s.size)-min(b, blocksOf(s.size))))
		if n == 0 {
			return
		}
		dst, sums = dst[:int(n)*block.Size], sums[:n]
		err = r.ReadSnapshot(snap, b, dst, sums)
		a.cover["reads of snapshots"]++
	} else {
		err = r.Read(b, dst, sums)
	}
	if a.tolerates(err) {
		return
	} else if err != nil {
		a.fatalf("read %s@%s %d+%d: %v", name, snap, b, n, err)
	}
	for i := range int(n) {
		x := m.at(b+uint64(i), at)
		if sums[i] != x.sum || block.Sum(dst[i*block.Size:(i+1)*block.Size]) != x.sum {
			a.fatalf("read %s@%s: block %d (version %v) differs", name, snap, int(b)+i, x.ver)
		}
	}
}

func (a *actor) readChunk(r *Replica, m *refReplica) {
	c := new(Chunk)
	number := a.rng.Uint64N(blocksOf(m.size)) / block.ChunkBlocks
	var have []block.Version
	var base block.Version
	newer := a.rng.IntN(2) == 0
	if newer || a.rng.IntN(2) == 0 {
		have = make([]block.Version, block.ChunkBlocks)
		for i := range have {
			if b := number*block.ChunkBlocks + uint64(i); b < blocksOf(m.size) && a.rng.IntN(2) == 0 {
				have[i] = m.head(b).ver
			}
		}
	}
	read := func() error { return r.ReadChunk(number, have, c) }
	if newer {
		base = have[a.rng.IntN(block.ChunkBlocks)]
		for i := range have {
			if !base.Less(have[i]) {
				have[i] = block.Version{}
			}
		}
		read = func() error { return r.ReadNewer(number, base, have, c) }
	}
	if err := read(); a.tolerates(err) {
		return
	} else if err != nil {
		a.fatalf("read chunk %d of %s: %v", number, r.Name(), err)
	}
	data := map[int][]byte{}
	for i, b := range c.DataOf {
		data[int(b)] = c.Data[i*block.Size : (i+1)*block.Size]
	}
	var newest block.Version
	for i := range block.ChunkBlocks {
		b := number*block.ChunkBlocks + uint64(i)
		if b >= blocksOf(m.size) {
			break // what was cut off may be listed
		}
		x := m.head(b)
		if newest.Less(x.ver) {
			newest = x.ver
		}
		if unlisted := newer && have[i].IsZero() && !base.Less(x.ver); c.Unlisted[i] != unlisted {
			a.fatalf("chunk %d of %s: block %d: %v is listed %t, base %v, asker has %v", number, r.Name(), i, x, !c.Unlisted[i], base, have[i])
		} else if unlisted {
			continue
		}
		d, ok := data[i]
		if c.Versions[i] != x.ver || c.Stored[i] != x.stored || ok != (x.stored && (have == nil || have[i] != x.ver)) ||
			x.stored && c.Sums[i] != x.sum || ok && block.Sum(d) != x.sum {
			a.fatalf("chunk %d of %s: block %d: version %v stored %t data %t, want %v", number, r.Name(), i, c.Versions[i], c.Stored[i], ok, x)
		}
	}
	if newest.IsZero() {
		return
	}
	var below block.Version // anything older than newest
	if newest.N > 0 {
		below = block.Version{Epoch: newest.Epoch, N: newest.N - 1}
	}
	if chunks, _, _ := r.Changed(below, number, make([]uint64, 0, 1)); len(chunks) == 0 || chunks[0] != number {
		a.fatalf("chunk %d of %s has a block of %v and is not listed as changed since %v", number, r.Name(), newest, below)
	}
}

// clean has the cleaner move something, and counts what several show of that.
func (a *actor) clean() {
	if a.did("clean", false, func(refPool) {}, func() error { return a.p.moveSome(a.rng) }) {
		a.cover["cleaner moves of shared blocks"] += a.p.sharedMoves()
	}
}

// sharedMoves returns the number of blocks that were moved since the last drain and that snapshots or clones show.
func (p *Pool) sharedMoves() (n int) {
	p.drain.cycle.Lock()
	defer p.drain.cycle.Unlock()
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	for _, m := range p.cleaner.moves {
		if r := p.idx.bySlot[m.key>>40]; r != nil && len(r.snaps) > 0 && !r.snaps[len(r.snaps)-1].ver.Less(m.ver) {
			n++
		}
	}
	return n
}

// deepChunks returns the number of chunks that have history pages.
func (r *Replica) deepChunks() (n int) {
	for c := range r.chunks() {
		d, err := r.rlock(c)
		if err != nil {
			return n
		}
		if d != nil && d.deep {
			n++
		}
		r.p.idx.mu.RUnlock()
	}
	return n
}
