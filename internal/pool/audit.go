package pool

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// auditor reads everything that is in use in a pool that was opened for looking only, on all devices.
//
// It goes through the segments in windows, so that its memory is bounded: what is referred to in a window is found by a
// walk through the whole index, sorted by address, and read with whole rows.
type auditor struct {
	p       *Pool
	r       *Report
	headers *logReader
	content []byte
	refs    []piece // of the window, ascending
	faults  map[faultAt]bool
	broken  map[string]bool // pages and parts of the directory that were reported as damaged
}

type faultAt struct {
	dev *raid.Device
	off int64
}

// noneHas is said of what is lost.
const noneHas = "does not have its checksum, and no copy and no parity has"

const (
	auditWindow = 1 << 20 // references in memory
	auditRun    = 1 << 20 // bytes read at once, unless something reaches over the end
)

// audit verifies everything that the index and the log refer to.
func (p *Pool) audit(r *Report) {
	a := &auditor{p: p, r: r, headers: p.newLogReader(), content: make([]byte, block.Size), faults: map[faultAt]bool{}, broken: map[string]bool{}}
	counts := make([]int, p.seg.count())
	p.eachRef(func(x piece) {
		if x.end() > p.seg.limit() {
			a.finding(&x, "refers to an address outside the pool")
			return
		}
		counts[x.at>>p.seg.shift]++
		switch x.kind {
		case pieceBlock:
			r.Blocks++
			r.Bytes += int64(x.n)
		case piecePage:
			r.Pages++
		}
	}, a.pageBroken)
	for from := 0; from < len(counts); {
		to, n := from, 0
		for to < len(counts) && (to == from || n+counts[to] <= auditWindow) {
			n += counts[to]
			to++
		}
		a.window(uint32(from), uint32(to), n)
		from = to
	}
}

func (a *auditor) pageBroken(r *Replica, chunk uint64, err error) {
	key := fmt.Sprint(r.slot, "/", chunk)
	f := Finding{What: FoundPage, Offset: -1, Replica: r.name, Block: int64(chunk * block.ChunkBlocks), Lost: true, Text: err.Error()}
	if s := (*ChecksumError)(nil); errors.As(err, &s) {
		f.Device, f.Offset, f.Block = s.Device, s.Offset, int64(s.Block)
		key = brokenAt(s.Device, s.Offset)
		if chunk = s.Block / block.ChunkBlocks; s.What == "directory" {
			f.What = FoundDirectory
			f.Text = fmt.Sprintf("the directory from chunk %d on is damaged, and with it where the pages of its chunks are", chunk)
		} else {
			f.Text = fmt.Sprintf("the page of chunk %d is damaged; where its blocks are is not known: %v", chunk, errors.Unwrap(err))
			if u, ok := err.(interface{ Unwrap() []error }); ok && len(u.Unwrap()) > 1 {
				f.Text = fmt.Sprintf("the page of chunk %d is damaged, and with it where its 512 blocks are: %v", chunk, u.Unwrap()[1])
			}
		}
	}
	if !a.broken[key] {
		a.broken[key] = true
		a.r.add(f)
	}
}

func brokenAt(device string, off int64) string { return fmt.Sprint(device, " ", off) }

// window verifies the segments from lo to below hi, in which there are n references.
func (a *auditor) window(lo, hi uint32, n int) {
	p := a.p
	a.refs = slices.Grow(a.refs[:0], n)
	if n > 0 {
		p.eachRef(func(x piece) {
			if s := uint32(x.at >> p.seg.shift); x.end() <= p.seg.limit() && s >= lo && s < hi {
				a.refs = append(a.refs, x)
			}
		}, a.pageBroken)
	}
	slices.SortFunc(a.refs, func(x, y piece) int {
		return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.n, y.n), cmp.Compare(x.slot, y.slot), cmp.Compare(x.number, y.number))
	})
	a.refs = slices.CompactFunc(a.refs, func(x, y piece) bool { return x.same(&y) })
	for i := 1; i < len(a.refs); i++ {
		if x, y := &a.refs[i-1], &a.refs[i]; x.end() > y.at {
			a.finding(y, fmt.Sprintf("shares its place with %s", p.describe(x)))
		}
	}
	rest := a.refs
	logged := map[uint32][]piece{} // what a replay reads, by segment
	for i := range p.offline.batches {
		if b := &p.offline.batches[i]; b.seg >= lo && b.seg < hi {
			logged[b.seg] = a.batchRefs(logged[b.seg], b)
		}
	}
	for seg := lo; seg < hi; seg++ {
		k := 0
		for k < len(rest) && uint32(rest[k].at>>p.seg.shift) == seg {
			k++
		}
		mine := rest[:k:k]
		rest = rest[k:]
		if len(mine) > 0 {
			a.kind(seg, mine)
		}
		if len(mine) == 0 && len(logged[seg]) == 0 {
			continue
		}
		if all := a.withHeaders(seg, mine, logged[seg]); len(all) > 0 {
			a.segment(all)
		}
	}
}

// kind compares what a segment is said to be with what is in it.
func (a *auditor) kind(seg uint32, refs []piece) {
	p := a.p
	kind := p.seg.kind[seg]
	for i := range refs {
		x := &refs[i]
		if kind == segFree || p.seg.free[seg/64]>>(seg%64)&1 != 0 {
			a.r.add(Finding{What: FoundSpace, Offset: -1, Block: -1, Lost: true, Text: fmt.Sprintf("segment %d is free, but %s is in it", seg, p.describe(x))})
			return
		}
		if (kind == segIndex) != (x.kind != pieceBlock) {
			a.r.add(Finding{What: FoundSpace, Offset: -1, Block: -1, Lost: true, Text: fmt.Sprintf("segment %d is for %s, but %s is in it", seg, SegmentKind(kind), p.describe(x))})
			return
		}
	}
}

// batchRefs appends what a replay reads of a batch: its header and state records.
func (a *auditor) batchRefs(dst []piece, b *replayedBatch) []piece {
	p := a.p
	h, raw, err := a.headers.wanted(b.seg, b.block, func(h *wal.Header) bool { return h.Seq == b.seq })
	start := uint64(b.seg)<<p.seg.shift + uint64(b.block)<<block.Shift
	if err != nil {
		a.finding(&piece{at: start, kind: pieceHeader, number: b.seq}, "the header that a replay needs is gone: "+err.Error())
		return dst
	}
	dst = append(dst, headerPiece(start, &h, raw))
	area := wal.MakeArea(start+uint64(len(dst[len(dst)-1].known)), h.RawBlocks)
	var it wal.Records
	var rec wal.Record
	for it.Reset(raw, &h); it.Next(&rec); area.Skip(rec.Kind, rec.Count, rec.Lens) {
		if rec.Kind == wal.State && rec.Count > 0 {
			dst = append(dst, statePiece(area.Raw, &rec))
		}
	}
	return dst
}

// withHeaders merges the references to a segment with the headers that say what the data in it is, and reports data of
// which none says so: it can be read, but the cleaner has to search the index for it.
func (a *auditor) withHeaders(seg uint32, refs, logged []piece) []piece {
	p := a.p
	all := append(slices.Clone(refs), logged...)
	if len(refs) > 0 && refs[0].kind == pieceBlock {
		have := map[uint64]uint64{} // batches that a replay reads: number, by address
		for i := range logged {
			if logged[i].kind == pieceHeader {
				have[logged[i].at] = logged[i].number
			}
		}
		said := make([]bool, len(refs))
		row := p.seg.row(seg)
		end := uint32((refs[len(refs)-1].at&uint64(p.seg.bytes()-1))>>block.Shift) + 1
		gap := int64(-1)
		var gaps []uint64
		for b := uint32(0); b < end; {
			start := uint64(seg)<<p.seg.shift + uint64(b)<<block.Shift
			seq, replayed := have[start] // power loss may have left an older one in its place on some devices
			h, raw, err := a.headers.wanted(seg, b, func(h *wal.Header) bool { return !replayed || h.Seq == seq })
			if err != nil {
				if gap < 0 {
					gap = int64(start)
				}
				b += row
				continue
			}
			if a.named(said, refs, start, &h, raw) {
				if !replayed {
					all = append(all, headerPiece(start, &h, raw))
				}
				a.r.Headers++
				if gap >= 0 {
					gaps, gap = append(gaps, uint64(gap)), -1
				}
			}
			b += padded(&h, row)
		}
		if gap >= 0 {
			gaps = append(gaps, uint64(gap))
		}
		a.unnamed(said, refs, gaps)
	}
	slices.SortStableFunc(all, func(x, y piece) int { return cmp.Compare(x.at, y.at) })
	return all
}

// named marks the references that the records of a batch account for, and reports whether there are any.
func (a *auditor) named(said []bool, refs []piece, start uint64, h *wal.Header, raw []byte) (any bool) {
	area := wal.MakeArea(start+uint64(h.HeaderBlocks)*block.Size, h.RawBlocks)
	var it wal.Records
	var rec wal.Record
	for it.Reset(raw, h); it.Next(&rec); {
		if rec.Kind == wal.State || len(rec.Sums) == 0 {
			area.Skip(rec.Kind, rec.Count, rec.Lens)
			continue
		}
		for i, sum := range rec.Sums {
			length := rec.Granules(i)
			at := area.Next(length)
			k, found := slices.BinarySearchFunc(refs, at, func(x piece, at uint64) int { return cmp.Compare(x.at, at) })
			for ; found && length > 0 && k < len(refs) && refs[k].at == at; k++ {
				if x := &refs[k]; x.n == uint32(length)*wal.Granule && x.slot == rec.Slot && x.number == rec.Block+uint64(i) && x.sum == sum {
					said[k], any = true, true
				}
			}
		}
	}
	return any
}

// unnamed reports the references that no header accounts for: one finding for each gap in the headers.
func (a *auditor) unnamed(said []bool, refs []piece, gaps []uint64) {
	p := a.p
	type group struct {
		first *piece
		n     int
	}
	byGap := map[uint64]*group{}
	for i := range refs {
		if said[i] {
			continue
		}
		k, _ := slices.BinarySearch(gaps, refs[i].at+1)
		at := refs[i].at &^ (block.Size - 1) // a header that is intact but says something else
		if k > 0 {
			at = gaps[k-1]
		}
		g := byGap[at]
		if g == nil {
			g = &group{first: &refs[i]}
			byGap[at] = g
		}
		g.n++
	}
	for _, at := range slices.Sorted(maps.Keys(byGap)) {
		g := byGap[at]
		f := Finding{What: FoundHeader, Block: -1, Lost: true}
		f.Device, f.Offset = p.where(at)
		f.Text = fmt.Sprintf("no intact header in segment %d says what is in %d blocks from %s on; they can be read, the cleaner has to search the index for them",
			at>>p.seg.shift, g.n, p.describe(g.first))
		a.r.add(f)
	}
}

// segment reads what refs, ascending and of one segment, refer to on all devices.
func (a *auditor) segment(refs []piece) {
	p := a.p
	row := uint64(p.seg.row(uint32(refs[0].at>>p.seg.shift))) << block.Shift
	for len(refs) > 0 {
		from := refs[0].at &^ (row - 1)
		to := (refs[0].end() + row - 1) &^ (row - 1)
		n := 1
		for ; n < len(refs); n++ {
			x := &refs[n]
			if x.at > to || x.at == to && to-from >= auditRun || to-from >= 16*auditRun {
				break
			}
			to = max(to, (x.end()+row-1)&^(row-1))
		}
		a.run(from, to, refs[:n])
		refs = refs[n:]
	}
}

// run verifies whole rows.
func (a *auditor) run(from, to uint64, refs []piece) {
	p := a.p
	var bad []int
	check := func(data []byte) []int {
		bad = bad[:0]
		for i := range refs {
			x := &refs[i]
			if x.right(data[x.at-from:x.end()-from], a.content) {
				continue
			}
			for k := int((x.at - from) >> block.Shift); k <= int((x.end()-1-from)>>block.Shift); k++ {
				bad = append(bad, k)
			}
		}
		slices.Sort(bad)
		bad = slices.Compact(bad)
		return bad
	}
	used := make([]uint64, (to-from)>>block.Shift)
	for i := range refs {
		raid.AddParts(used, int(refs[i].at-from), int(refs[i].end()-from))
	}
	g, off := p.seg.locate(from)
	faults, lost, err := g.AuditParts(off, int64(to-from), used, check)
	if err != nil {
		a.r.add(Finding{What: FoundDevice, Offset: -1, Block: -1, Lost: true, Text: fmt.Sprintf("segment %d: %v", from>>p.seg.shift, err)})
		return
	}
	a.r.Rows += int64(to-from) / int64(g.Row())
	gone := map[uint64]bool{} // addresses of rows that are lost
	for _, k := range lost {
		gone[(from+uint64(k)<<block.Shift)&^(uint64(g.Row())-1)] = true
	}
	for i := range faults {
		f := &faults[i]
		rowAt := from + uint64(f.At-off)
		if !gone[rowAt] {
			a.fault(f, g, rowAt, refs)
		}
	}
	for i := range refs {
		x := &refs[i]
		hit := false
		for at := x.at &^ (uint64(g.Row()) - 1); at < x.end(); at += uint64(g.Row()) {
			hit = hit || gone[at]
		}
		if !hit {
			continue
		}
		b := disk.Buffer(int((x.end()+block.Size-1)&^(block.Size-1) - x.at&^(block.Size-1)))
		if err := p.seg.readAt(b, x.at&^(block.Size-1)); err != nil {
			a.finding(x, "cannot be read: "+err.Error())
		} else if !x.right(b[x.at&(block.Size-1):][:x.n], a.content) {
			a.finding(x, noneHas)
		}
	}
}

// fault reports a block of a device that is not what it should be although the raid group has what it should be.
func (a *auditor) fault(f *raid.Fault, g *groupState, rowAt uint64, refs []piece) {
	p := a.p
	at := faultAt{f.Device, f.Off}
	if a.faults[at] {
		return
	}
	a.faults[at] = true
	if !f.Unreadable && p.offline.tail(rowAt, rowAt+uint64(g.Row()), p.seg.shift) {
		return // written on some devices when the power went; opening the pool makes them equal
	}
	x := Finding{What: FoundCopy, Device: f.Device.Name(), Offset: f.Off, Length: block.Size, Block: -1}
	who := "what is not in use any more"
	lo, hi := rowAt, rowAt+uint64(g.Row())
	if f.Parity {
		x.What = FoundParity
	} else if g.row > 1 {
		x.What = FoundData
		for s := range g.row { // the data block that is on this device
			if device, off := g.place(int64(s)<<block.Shift + f.At); off == f.Off && device == x.Device {
				lo, hi = rowAt+uint64(s)<<block.Shift, rowAt+uint64(s+1)<<block.Shift
			}
		}
	}
	var first *piece
	for i := range refs {
		y := &refs[i]
		if y.at >= hi || y.end() <= lo {
			continue
		}
		replica := y.kind == pieceBlock && int(y.slot) < len(p.idx.bySlot) && p.idx.bySlot[y.slot] != nil && !f.Parity
		switch b := int64(y.number); {
		case first == nil && replica:
			x.Replica, x.Block, x.Version, x.blocks = p.idx.bySlot[y.slot].name, b, new(y.ver), 1
			first, who = y, fmt.Sprintf("version %v", y.ver)
		case first == nil:
			first, who = y, p.describe(y)
		case replica && x.Replica != "" && y.slot == first.slot: // compressed blocks share one of the device
			x.addBlocks(b, b, 1)
		}
	}
	has := "the redundancy of " + g.name() + " has"
	switch {
	case f.Unreadable:
		x.Text, x.several = fmt.Sprintf("cannot be read: %s, which %s", who, has), "cannot be read; "+has+" them"
	case f.Parity && covered(rowAt, g, refs):
		x.several = "parity is wrong; all data of the row is intact, and parity can be made of it"
		x.Text = fmt.Sprintf("%s: the row at %#x in %s, in which is %s", x.several, rowAt, g.name(), who)
	case f.Parity:
		x.several = "parity does not fit the row; what is in use of the row is intact, but what is not may be wrong instead of the parity"
		x.Text = fmt.Sprintf("%s: the row at %#x in %s, in which is %s", x.several, rowAt, g.name(), who)
	default:
		x.Text, x.several = fmt.Sprintf("is not what it should be: %s, which %s", who, has), "are not what they should be; "+has+" them"
	}
	a.r.add(x)
}

// covered reports whether every byte of data of the row at an address belongs to one of refs, ascending.
func covered(rowAt uint64, g *groupState, refs []piece) bool {
	at := rowAt
	for i := range refs {
		if x := &refs[i]; x.at <= at && x.end() > at {
			at = x.end()
		}
	}
	return at >= rowAt+uint64(g.Row())
}

// finding reports what is wrong with something that is in use.
func (a *auditor) finding(x *piece, text string) {
	p := a.p
	f := Finding{What: x.kind.String(), Block: -1, Length: int64(x.n), Lost: true, Text: text}
	f.Device, f.Offset = p.where(x.at)
	switch x.kind {
	case pieceBlock, piecePage, pieceDir, pieceState:
		if int(x.slot) < len(p.idx.bySlot) && p.idx.bySlot[x.slot] != nil {
			f.Replica = p.idx.bySlot[x.slot].name
		}
		switch x.kind {
		case pieceBlock:
			f.Block, f.Version = int64(x.block()), new(x.ver)
			if text == noneHas {
				f.several = "do not have their checksums, and no copy and no parity has"
			}
			f.Text = fmt.Sprintf("version %v %s", x.ver, text)
		case piecePage, pieceDir:
			f.Block = int64(x.block())
			if a.broken[brokenAt(f.Device, f.Offset)] {
				return // reported with why
			}
		}
	case pieceHeader:
		f.Text = fmt.Sprintf("of batch %d %s", x.number, text)
	}
	a.r.add(f)
}
