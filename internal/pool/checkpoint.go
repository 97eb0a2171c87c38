package pool

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

func newGroup() []byte { return disk.Buffer(indexGroup + block.Size)[:0] }

// extent is a piece of the checkpoint's root.
type extent = label.Extent

// checkpoint writes the directory, the replicas as of drain.from and the segment table, and makes them the state that
// the next Open begins with, before it returns. The frozen table is drained; cycle and mu are held, and nothing is
// being committed.
func (p *Pool) checkpoint() (freed int, err error) {
	for {
		c, err := p.prepareCheckpoint()
		if err != nil {
			return 0, err
		}
		p.startCommit(c)
		if ok, err := c.wait(); ok || err != nil {
			return c.freed, err
		}
	}
}

// prepareCheckpoint writes what a checkpoint consists of.
func (p *Pool) prepareCheckpoint() (*pending, error) {
	s := &p.drain
	if err := p.writeDirectory(); err != nil {
		return nil, err
	}
	c := &pending{from: s.from, marks: p.missed(), done: make(chan struct{})}
	extents, err := p.writeRoot(p.encodeRoot())
	if err != nil {
		return nil, err
	}
	p.root, c.root = extents, extents
	p.idx.mu.Lock()
	s.cost = indexCost{}
	p.idx.mu.Unlock()
	c.dead = p.deadSegments()
	c.released, s.released = s.released, nil
	if last := p.commits.newest; last != nil && last.void {
		c.released = append(c.released, last.released...)
	}
	return c, nil
}

// writeRoot writes the root in pieces and replaces the accounting of the one before, whose space the table in the root
// already leaves out.
func (p *Pool) writeRoot(root []byte) ([]extent, error) {
	w := &p.drain.writer
	if int64(len(root)) > p.opt.rootBytes { // cannot be, see rootsize.go
		return nil, p.fail(fmt.Errorf("checkpoint of %d bytes: %w", len(root), ErrTooLarge))
	}
	var out []extent
	for at := 0; at < len(root); at += indexGroup {
		piece := root[at:min(at+indexGroup, len(root))]
		addr, err := p.place(w, len(piece))
		if err != nil {
			return nil, err
		}
		w.buf = append(w.buf, piece...)
		if err := p.writeGroup(w); err != nil {
			return nil, err
		}
		out = append(out, extent{Addr: addr, Len: uint32(len(piece)), Sum: block.Sum(piece)})
	}
	p.idx.mu.Lock()
	for _, e := range out {
		p.accountRoot(e, 1)
	}
	p.idx.mu.Unlock()
	return out, nil
}

func (p *Pool) accountRoot(e extent, sign int) {
	n := int(granules(e.Len)) * sign
	p.seg.pageLive[e.Addr>>p.seg.shift] += uint32(n)
	p.metaLive += int64(n)
}
