package workload

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/cstor-go/cstor/internal/block"
)

// bulkDepth is the number of pieces that Fill and Verify keep in flight.
const bulkDepth = 4

// Fill writes every block of the extents in order, and flushes. progress, if not nil, is called with the bytes done and
// to do after every piece, from several goroutines.
func (a *App) Fill(ctx context.Context, progress func(done, total int64)) error {
	if err := a.bulk(ctx, block.Write, a.cfg.Extents, progress); err != nil {
		return err
	}
	if err := a.newWorker().do(ctx, operation{op: block.Flush}); err != nil {
		return err
	}
	return a.Err()
}

// Verify reads the whole volume, also where nothing was ever written, and compares it with the model.
func (a *App) Verify(ctx context.Context, progress func(done, total int64)) error {
	whole := []Extent{{Length: a.cfg.Device.Size() / block.Size * block.Size}}
	return a.bulk(ctx, block.Read, whole, progress)
}

// bulk does one kind of operation in large pieces over extents.
func (a *App) bulk(ctx context.Context, op block.Op, extents []Extent, progress func(done, total int64)) error {
	var pieces []Extent
	var total int64
	for _, e := range extents {
		for at := int64(0); at < e.Length; at += pieceBytes {
			pieces = append(pieces, Extent{e.Offset + at, min(pieceBytes, e.Length-at)})
		}
		total += e.Length
	}
	var next, done atomic.Int64
	var wg sync.WaitGroup
	for range bulkDepth {
		wg.Go(func() {
			w := a.newWorker()
			for {
				i := next.Add(1) - 1
				if i >= int64(len(pieces)) {
					return
				}
				p := pieces[i]
				o := operation{op: op, first: uint64(p.Offset / block.Size), count: uint64(p.Length / block.Size)}
				select {
				case <-a.failed:
					return
				default:
				}
				if w.do(ctx, o) != nil {
					return
				}
				if n := done.Add(p.Length); progress != nil {
					progress(n, total)
				}
			}
		})
	}
	wg.Wait()
	if err := a.Err(); err != nil {
		return err
	}
	return ctx.Err()
}
