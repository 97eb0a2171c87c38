package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/wire"
)

// Info is what Inspect tells of a replica.
type Info struct {
	GUID    block.GUID
	Size    int64         // bytes
	Applied block.Version // the last operation applied
	Chunks  int           // chunks that were ever written
}

// Inspect asks the replica server at addr for a complete replica.
func Inspect(ctx context.Context, addr, name string) (Info, error) {
	p, err := dialPeer(ctx, addr, wire.Hello{Replica: name, By: "inspect", Inspect: true})
	if err != nil {
		return Info{}, fmt.Errorf("inspect replica %s: %w", name, err)
	}
	defer p.close()
	chunks, err := p.changed(block.Version{})
	if err != nil {
		return Info{}, fmt.Errorf("inspect replica %s: %w", name, err)
	}
	return Info{GUID: p.hello.GUID, Size: p.hello.Size, Applied: p.hello.Applied, Chunks: len(chunks)}, nil
}

// Difference is the first difference that Compare found.
type Difference struct {
	Block uint64
	What  string
}

func (d *Difference) Error() string { return fmt.Sprintf("block %d differs: %s", d.Block, d.What) }

// Compared counts what Compare has compared.
type Compared struct {
	At     block.Version
	Chunks int
	Blocks int // stored blocks, whose data was compared
}

// ErrMoving is wrapped when the replicas were not at the same version all the time.
var ErrMoving = errors.New("the replicas are not at the same version; the volume must be idle for a comparison")

const compareLimit = 10 * time.Second // how long two replicas may take to come to the same version

// Compare compares two complete replicas of a volume block for block: versions, checksums and data. It waits a while for
// both to be at the same version. The error is a *Difference if they are and do not agree.
func Compare(ctx context.Context, addrA, nameA, addrB, nameB string) (Compared, error) {
	for start := time.Now(); ; {
		n, err := compare(ctx, addrA, nameA, addrB, nameB)
		if !errors.Is(err, ErrMoving) || time.Since(start) > compareLimit || !pause(ctx, 50*time.Millisecond) {
			if err != nil {
				err = fmt.Errorf("compare replicas %s and %s: %w", nameA, nameB, err)
			}
			return n, err
		}
	}
}

func compare(ctx context.Context, addrA, nameA, addrB, nameB string) (n Compared, err error) {
	a, err := dialPeer(ctx, addrA, wire.Hello{Replica: nameA, By: "compare", Inspect: true})
	if err != nil {
		return n, err
	}
	defer a.close()
	b, err := dialPeer(ctx, addrB, wire.Hello{Replica: nameB, By: "compare", Inspect: true})
	if err != nil {
		return n, err
	}
	defer b.close()
	n.At = a.hello.Applied
	if a.hello.Applied != b.hello.Applied {
		return n, fmt.Errorf("%w: %v and %v", ErrMoving, a.hello.Applied, b.hello.Applied)
	}
	if a.hello.Size != b.hello.Size {
		return n, fmt.Errorf("sizes are %d and %d bytes", a.hello.Size, b.hello.Size)
	}
	chunksA, err := a.changed(block.Version{})
	if err != nil {
		return n, err
	}
	chunksB, err := b.changed(block.Version{})
	if err != nil {
		return n, err
	}
	var none [block.ChunkBlocks]block.Version
	var x, y pool.Chunk
	for _, index := range union(chunksA, chunksB) {
		a.ask(index, block.Version{}, &none)
		b.ask(index, block.Version{}, &none)
		if err := a.chunk(index, &x); err != nil {
			return n, err
		}
		if err := b.chunk(index, &y); err != nil {
			return n, err
		}
		if x.Scan != n.At || y.Scan != n.At {
			return n, fmt.Errorf("%w: %v and %v", ErrMoving, x.Scan, y.Scan)
		}
		if err := compareChunk(&x, &y); err != nil {
			return n, err
		}
		n.Chunks++
		n.Blocks += len(x.DataOf)
	}
	return n, nil
}

func compareChunk(x, y *pool.Chunk) error {
	at := 0
	for i := range block.ChunkBlocks {
		number := x.Index*block.ChunkBlocks + uint64(i)
		switch {
		case x.Versions[i] != y.Versions[i]:
			return &Difference{number, fmt.Sprintf("versions %v and %v", x.Versions[i], y.Versions[i])}
		case x.Stored[i] != y.Stored[i]:
			return &Difference{number, fmt.Sprintf("stored: %v and %v", x.Stored[i], y.Stored[i])}
		case x.Sums[i] != y.Sums[i]:
			return &Difference{number, fmt.Sprintf("checksums %08x and %08x", x.Sums[i], y.Sums[i])}
		}
		if !x.Stored[i] {
			continue
		}
		if at >= len(x.DataOf) || at >= len(y.DataOf) || x.DataOf[at] != uint16(i) || y.DataOf[at] != uint16(i) {
			return &Difference{number, "data is missing"}
		}
		if !bytes.Equal(x.Data[at*block.Size:(at+1)*block.Size], y.Data[at*block.Size:(at+1)*block.Size]) {
			return &Difference{number, "data"}
		}
		at++
	}
	return nil
}
