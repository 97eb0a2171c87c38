package pool

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// spoil inverts a bit in the blocks from off on, of device bad(k) for the k-th.
func spoil(mems []*disk.Mem, off int64, blocks int, bad func(k int) int) {
	for k := range blocks {
		for at := int64(0); at < block.Size; at += 512 { // a compressed block may end anywhere
			mems[bad(k)].FlipBit(off+int64(k)*block.Size+at+100, 3)
		}
	}
}

// TestCompressedOnRaid damages compressed data on one device or another of each row: reads and the replay of a batch
// that no flush covered find the right combination, whichever rows a compressed block touches, and repair it.
func TestCompressedOnRaid(t *testing.T) {
	for _, k := range []struct {
		kind    raid.Kind
		devices int
	}{{raid.Mirror, 2}, {raid.Mirror, 3}, {raid.RAIDZ, 3}, {raid.RAIDZ, 5}, {raid.RAIDZ2, 6}} {
		for _, a := range []compress.Algorithm{compress.LZ4, compress.Zstd} {
			for _, synced := range []bool{true, false} {
				t.Run(fmt.Sprintf("%v-%d/%v/synced=%t", k.kind, k.devices, a, synced), func(t *testing.T) {
					g := Group{Kind: k.kind}
					var mems []*disk.Mem
					for i := range k.devices {
						mems = append(mems, disk.NewMem(fmt.Sprint("mem", i), 40<<20))
						g.Devices = append(g.Devices, mems[i])
					}
					p, err := Create([]Group{g}, Config{Name: "test"}, Options{Compression: a, SegmentBytes: 1 << 20})
					must(t, err)
					r, err := p.CreateReplica("v", 4<<20)
					must(t, err)
					data, _, _ := k.kind.Shape(k.devices)
					p.log.mu.Lock()
					pos := p.log.pos
					p.log.mu.Unlock()
					want := append(append(half(30, 1), noise(3, 2)...), half(20, 3)...)
					must(t, r.Apply([]Op{writeData(0, want, 1)}))
					if synced {
						must(t, p.Sync())
					}
					// The header is in the first row or two; what is behind is spoilt, another device in each row.
					rows := (30 + 20) / 2 / data
					off := label.HeadBytes + (int64(pos.seg)<<p.seg.shift+int64(pos.block)<<block.Shift)/int64(data) + 2*block.Size
					if !synced {
						for i := range mems {
							mems[i] = mems[i].Kill()
							g.Devices[i] = mems[i]
						}
						p.Close() // fails, and ends the background
					}
					spoil(mems, off, rows, func(i int) int { return i * 7 / 3 % k.devices })
					look := func(p *Pool) {
						t.Helper()
						r := p.Replica("v")
						got := make([]byte, len(want))
						must(t, r.Read(0, got, nil))
						if !bytes.Equal(got, want) {
							t.Fatal("content")
						}
						var c Chunk
						must(t, r.ReadChunk(0, nil, &c))
						if !bytes.Equal(c.Data, want) {
							t.Fatal("content of the chunk")
						}
					}
					if synced {
						look(p)
						must(t, p.Close())
						for i := range mems {
							mems[i].Reopen()
						}
					}
					q, err := Open(g.Devices, Options{})
					must(t, err)
					look(q)
					must(t, q.Check())
					must(t, q.Close())
				})
			}
		}
	}
}
