package sim

import (
	"errors"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
)

// pull is a rebuild's copy under way.
type pull struct {
	volume.Pull
	conn *conn
	todo []uint64
}

func (w *world) replica(g block.GUID) *replica {
	for _, r := range w.replicas {
		if r.disk.report.GUID == g {
			return r
		}
	}
	return nil
}

func (r *replica) startPull(c *conn, p volume.Pull) {
	r.pull = &pull{Pull: p, conn: c}
	r.w.cover.Pulls++
	if !p.Base.IsZero() {
		r.w.cover.DeltaPulls++
	}
	r.ask(r.pull, func(src *replica) (func(), error) {
		theirs := src.disk.changed(p.Base)
		return func() {
			r.pull.todo = union(theirs, r.disk.changed(p.Base))
			r.nextChunk(r.pull)
		}, nil
	})
}

// nextChunk pulls one chunk after the other.
func (r *replica) nextChunk(p *pull) {
	if len(p.todo) == 0 {
		r.w.after(r.w.between(0, 5*ms), &r.process, func() {
			if r.pull == p {
				r.must(r.disk.sync())
				r.do(p.conn, r.member.Rebuilt(p.Attempt))
			}
		})
		return
	}
	i := p.todo[0]
	have, err := r.disk.versions(i, p.Base)
	r.must(err)
	r.ask(p, func(src *replica) (func(), error) {
		var c *pool.Chunk
		var err error
		src.lie(func() { c, err = src.disk.chunk(i, p.Base, &have) })
		return func() {
			switch err := r.disk.merge(c); {
			case errors.Is(err, pool.ErrStaleChunk): // once more
			case errors.Is(err, block.ErrNoSpace):
				r.w.after(20*ms, &r.process, func() {
					if r.pull == p {
						r.nextChunk(p)
					}
				})
				return
			default:
				r.must(err)
				p.todo = p.todo[1:]
			}
			r.nextChunk(p)
		}, err
	})
}

// ask sends a request of p to its source, and takes the answer if the pull is still the current one. It asks again
// when the source is not ready yet, and gives up when the source refuses or is not heard.
func (r *replica) ask(p *pull, at func(src *replica) (take func(), err error)) {
	w := r.w
	failed := func(why string) {
		w.after(w.between(0, 20*ms), &r.process, func() {
			if r.pull == p {
				r.do(p.conn, r.member.PullFailed(p.Attempt, why))
			}
		})
	}
	delay := func() time.Duration { return w.between(100*time.Microsecond, 4*ms) }
	w.after(delay(), &r.process, func() {
		src := w.replica(p.Source.GUID)
		if r.pull != p {
			return
		}
		fails := w.pullFails && !w.calm
		w.pullFails = false
		if src == nil || !src.alive || src.frozen > w.now+30*ms || fails {
			failed("source does not answer")
			return
		}
		w.after(delay(), &src.process, func() {
			switch err := src.member.MayServe(p.Promise, p.From); {
			case errors.Is(err, volume.ErrNotYet):
				w.cover.NotYet++
				w.after(5*ms, &r.process, func() {
					if r.pull == p {
						r.ask(p, at)
					}
				})
			case err != nil:
				failed(err.Error())
			default:
				if !src.disk.report.State.Complete {
					w.fail("%s serves a pull and is not complete", src.name)
				}
				take, err := at(src)
				if err != nil {
					if !errors.Is(err, pool.ErrChecksum) {
						src.must(err)
					}
					failed(err.Error())
					return
				}
				w.after(delay(), &r.process, func() {
					if r.pull == p {
						take()
					}
				})
			}
		})
	})
}
