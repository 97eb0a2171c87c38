package pool

import (
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestScrubRate scrubs at a rate, on a clock that only goes on while the scrub waits: it takes as long as that rate says
// for what is stored. Paused on the way, it waits for being resumed and then takes the rest of the time.
func TestScrubRate(t *testing.T) {
	const data, rate, step = 12 << 20, 256 << 10, 1 << 20
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: step, DeltaEntries: 4096, Compression: compress.Off})
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	for b := uint64(0); b < data/block.Size; b += 64 {
		must(t, r.Apply([]Op{write(b, 64, b+1)}))
	}
	must(t, p.Close())
	m.Reopen()
	q := openIdle(t, []disk.Device{m}, Options{})
	defer closeIdle(q)
	seconds := func(bytes int64) time.Duration { return time.Duration(bytes) * time.Second / rate }
	for _, pause := range []bool{false, true} {
		start := time.Unix(1e9, 0)
		now := start
		q.upkeep.now = func() time.Time { return now }
		q.upkeep.nap = func(d time.Duration) {
			if now = now.Add(d); pause && now.Sub(start) >= seconds(data/2) {
				pause = false
				must(t, q.PauseScrub())
			}
		}
		paused := pause
		must(t, q.Scrub(ScrubOptions{Rate: rate}))
		q.scrub()
		if paused {
			if x := q.Activity().Scrub; x.State != ActivityPaused || x.Done == 0 || x.Done > data*3/4 || q.scrubDue() {
				t.Fatalf("%+v", x)
			}
			now = now.Add(time.Hour)
			start = start.Add(time.Hour)
			must(t, q.ResumeScrub())
			q.scrub()
		}
		x, took := q.Activity().Scrub, now.Sub(start)
		if x.State != ActivityDone || x.Total < data {
			t.Fatalf("%+v", x)
		}
		if least, most := seconds(x.Total), seconds(x.Total+x.Total/8+step); took < least || took > most {
			t.Errorf("%d bytes at %d a second took %v, want %v to %v", x.Total, rate, took, least, most)
		}
	}
}
