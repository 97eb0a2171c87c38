package replica

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// mostStages is how many replicas of a server catch up at once, and how many let others do, at a time: each takes up to
// block.MostStaged blocks of memory.
const mostStages = 4

// errNotStaged is wrapped when a stage was not applied and nothing has changed.
var errNotStaged = errors.New("not applied")

// runStage fetches all that the replica lacks, as of one moment, and applies it.
func (p *pull) runStage(ctx context.Context) {
	if !p.awaitSlot(ctx) {
		close(p.done)
		return
	}
	defer func() { <-p.a.server.stages }()
	blocks, scan, err := p.fetchStage(ctx)
	close(p.done)
	p.finishStage(blocks, scan, err)
}

// awaitSlot reports whether the stage may begin now; it may not when it is over. It says once a second that it waits, since that
// does not count as time that the stage takes.
func (p *pull) awaitSlot(ctx context.Context) bool {
	slots := p.a.server.stages
	select {
	case slots <- struct{}{}:
		return true
	default:
	}
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		p.tell(&progress{waitingFor: "other replicas of the pool to catch up"})
		select {
		case slots <- struct{}{}:
			return true
		case <-ctx.Done():
			return false
		case <-again.C:
		}
	}
}

func (p *pull) fetchStage(ctx context.Context) (blocks []block.Staged, scan block.Version, err error) {
	if err := p.a.server.mayStream(); err != nil {
		return nil, scan, err
	}
	have, err := p.a.r.StageVersions(p.what.Base)
	if err != nil {
		return nil, scan, err
	}
	src, err := p.dial(ctx)
	if err != nil {
		return nil, scan, err
	}
	defer src.close()
	if src.hello.Size > p.a.r.Size() {
		return nil, scan, fmt.Errorf("the source has %d bytes, this replica %d", src.hello.Size, p.a.r.Size())
	}
	if blocks, scan, err = src.stage(p.what.Base, have); err != nil {
		return nil, scan, err
	}
	return blocks, scan, ctx.Err()
}

// finishStage applies what was fetched, unless the pull was stopped.
func (p *pull) finishStage(blocks []block.Staged, scan block.Version, err error) {
	a := p.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if !p.over() {
		return
	}
	var ready volume.MemberReady
	if err != nil {
		a.log.Info("cannot catch up at once", "source", p.what.Source.Name, "reason", err)
		var remote *wire.RemoteError
		tooMuch := errors.Is(err, pool.ErrTooLarge) || errors.As(err, &remote) && remote.Code == wire.CodeTooMuch
		ready = a.member.StageFailed(p.what.Attempt, err.Error(), tooMuch)
	} else {
		ready = a.member.Staged(p.what.Attempt, scan)
	}
	err = a.doBy(p.s, ready, func(state []byte) error {
		err := a.r.ApplyStage(blocks, state, ready.Applied)
		if err == nil {
			a.log.Info("caught up at once", "source", p.what.Source.Name, "base", p.what.Base, "to", scan, "blocks", len(blocks))
		} else if !errors.Is(err, pool.ErrFailed) {
			err = fmt.Errorf("%w: %w", errNotStaged, err)
		}
		return err
	})
	if p.told(err) && a.server.wrote(int64(len(blocks))*block.Size) {
		a.server.tasks.Go(a.server.tellSpace)
	}
}

// stage asks for all blocks that are newer than base, here or there, as of the moment scan; have are those here.
func (p *peer) stage(base block.Version, have []block.Staged) (blocks []block.Staged, scan block.Version, err error) {
	p.frame = wire.AppendStage(p.frame[:0], base, have)
	if err := p.write(); err != nil {
		return nil, scan, err
	}
	for left, first := uint64(0), true; first || left > 0; first = false {
		f, err := p.next()
		if err != nil {
			return nil, scan, err
		}
		want, n := left, len(blocks)
		if blocks, left, err = f.StageReply(blocks); err != nil {
			return nil, scan, err
		}
		if !first && (f.Version() != scan || left+uint64(len(blocks)-n) != want) {
			return nil, scan, fmt.Errorf("%w: the rest of a stage of %v, of %d blocks, says %v and %d", wire.ErrFormat, scan, want, f.Version(), left+uint64(len(blocks)-n))
		}
		scan = f.Version()
	}
	return blocks, scan, nil
}

// stage answers such a request. All of it is in memory before any is sent, so that a peer that is slow keeps nothing of the
// pool.
func (c *sourceConn) stage(f *wire.Frame) error {
	have, err := f.Stage()
	if err != nil {
		return err
	}
	select {
	case c.server.cuts <- struct{}{}:
	case <-c.gone:
		return net.ErrClosed
	case <-c.a.ctx.Done():
		return net.ErrClosed
	}
	defer func() { <-c.server.cuts }()
	var blocks []block.Staged
	var scan block.Version
	if err = c.mayServe(); err == nil {
		blocks, scan, err = c.a.r.ReadStage(f.Version(), have, &c.a.mu)
		if !errors.Is(err, pool.ErrTooLarge) {
			c.a.note(err)
		}
	}
	if err == nil {
		err = c.mayServe()
	}
	if err != nil {
		return c.refuse(wire.TypeStageReply, f.Tag, err)
	}
	for first := true; first || len(blocks) > 0; first = false {
		c.frame, blocks = wire.AppendStageReply(c.frame[:0], scan, blocks)
		if err := c.write(nil); err != nil {
			return err
		}
	}
	return nil
}
