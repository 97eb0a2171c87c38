package pool

import (
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

func newGroup() []byte { return disk.Buffer(indexGroup + block.Size)[:0] }

// extent is a piece of the checkpoint's root.
type extent = label.Extent

// checkpoint writes the directory, the replicas as of drain.from and the segment table, and makes them the state that
// the next Open begins with. The frozen table is drained. cycle and mu are held; mu is let go once all is written, so
// that the slow flushes hold nobody up.
func (p *Pool) checkpoint() error {
	if err := p.writeDirectory(); err != nil {
		return err
	}
	var marks []mark
	for again := true; again; again = !slices.Equal(marks, p.missed()) { // the root must list all that is stale
		marks = p.missed()
		root := p.encodeRoot()
		extents, err := p.writeRoot(root)
		if err != nil {
			return err
		}
		p.root = extents
		if err := p.flushDevices(); err != nil {
			return err
		}
	}
	p.generation++
	if err := p.writeRing(&label.Ring{Pool: p.cfg.GUID, Generation: p.generation, Root: p.root}); err != nil {
		return p.fail(fmt.Errorf("checkpoint %d: %w", p.generation, err))
	}
	if err := p.flushDevices(); err != nil {
		return err
	}
	p.count.checkpoints.Add(1)
	if err := p.committed(marks); err != nil {
		return p.fail(fmt.Errorf("labels: %w", err))
	}
	return nil
}

// writeRoot writes the root in pieces and replaces the accounting of the one before, whose space the table in the root
// already leaves out.
func (p *Pool) writeRoot(root []byte) ([]extent, error) {
	w := &p.drain.writer
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
	if len(out) > label.MaxExtents {
		return nil, p.fail(fmt.Errorf("checkpoint of %d bytes: %w", len(root), ErrTooLarge))
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
