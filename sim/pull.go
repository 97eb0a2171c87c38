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
	if p.Stage {
		r.stage(r.pull)
		return
	}
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

// stage fetches what the replica lacks, and applies it at once.
func (r *replica) stage(p *pull) {
	have, err := r.disk.r.StageVersions(p.Base)
	r.must(err)
	if r.w.staging.IntN(6) == 0 {
		r.w.after(r.w.between(0, 4*ms), &r.process, func() {
			if r.pull == p {
				r.do(p.conn, r.member.StageFailed(p.Attempt, "too much", true))
			}
		})
		return
	}
	r.ask(p, func(src *replica) (func(), error) {
		var b []block.Staged
		var scan block.Version
		var err error
		src.lie(func() { b, scan, err = src.disk.stage(p.Base, have) })
		return func() {
			r.pull = nil
			was := r.disk.report.Last
			if r.disk.dev.left > 0 { // the power that is to be lost in the middle of something is lost in this
				r.disk.dev.left = 1 + r.w.staging.IntN(3)
				r.w.cover.StageCuts++
			}
			r.w.logf("%s: from %v to %v, as %s was, %d blocks", r.name, was, scan, p.Source.Name, len(b))
			r.doBy(p.conn, r.member.Staged(p.Attempt, scan), func(st volume.State, applied block.Version) error {
				return r.disk.putStage(b, st, applied)
			})
		}, err
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
	if p.Ambiguous {
		block.Disown(have[:])
	}
	r.ask(p, func(src *replica) (func(), error) {
		var c *pool.Chunk
		var err error
		src.lie(func() { c, err = src.disk.chunk(i, p.Base, &have) })
		return func() {
			c.Ambiguous = p.Ambiguous
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
				if p.Stage {
					r.do(p.conn, r.member.StageFailed(p.Attempt, why, false))
				} else {
					r.do(p.conn, r.member.PullFailed(p.Attempt, why))
				}
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
