package wire

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
)

// whole returns the only frame of b, which may come in several reads.
func whole(t *testing.T, b []byte) *Frame {
	t.Helper()
	r := NewReader(bytes.NewReader(b))
	for {
		f, ok, err := r.Next()
		if err == nil && !ok {
			err = r.Fill()
		}
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return &f
		}
	}
}

// TestStage sends a request for a stage and its reply, of more than one frame, and none of its bits can be wrong unnoticed.
func TestStage(t *testing.T) {
	base, scan := block.Version{Epoch: 1, N: 7}, block.Version{Epoch: 2, N: 9}
	var blocks, have []block.Staged
	for b := range uint64(MaxBlocks + 3) {
		x := block.Staged{Block: 3 * b, Version: block.Version{Epoch: 2, N: b + 1}, Sum: block.ZeroSum}
		switch b % 4 {
		case 0:
			x.Stored, x.Data = true, randomBlocks(b, 1)
			x.Sum = block.Sum(x.Data)
		case 1:
			x.Stored, x.Sum = true, uint32(b)
		case 2:
			x.Version = block.Version{}
		}
		blocks = append(blocks, x)
		have = append(have, block.Staged{Block: b, Version: block.Version{Epoch: 1, N: b}})
	}
	f := whole(t, AppendStage(nil, base, have))
	if got, err := f.Stage(); err != nil || f.Version() != base || !reflect.DeepEqual(got, have) {
		t.Fatal(len(got), f.Version(), err)
	}
	f = whole(t, AppendStage(nil, base, nil))
	if got, err := f.Stage(); err != nil || len(got) != 0 {
		t.Fatal(got, err)
	}
	var got []block.Staged
	var err error
	for rest, left := blocks, uint64(0); len(got) == 0 || left > 0; {
		var b []byte
		b, rest = AppendStageReply(nil, scan, rest)
		f := whole(t, b)
		if got, left, err = f.StageReply(got); err != nil || left != uint64(len(rest)) || f.Version() != scan {
			t.Fatal(len(got), left, f.Version(), err)
		}
	}
	if !reflect.DeepEqual(got, blocks) {
		t.Fatal("the blocks came as others")
	}
	b, _ := AppendStageReply(nil, scan, nil)
	if got, left, err := whole(t, b).StageReply(nil); err != nil || left != 0 || len(got) != 0 {
		t.Fatal(got, left, err)
	}
	b = AppendError(nil, TypeStageReply, 0, CodeTooMuch, "too much")
	var remote *RemoteError
	if _, _, err := whole(t, b).StageReply(nil); !errors.As(err, &remote) || remote.Code != CodeTooMuch {
		t.Fatal(err)
	}

	request := AppendStage(nil, base, have[:3])
	reply, _ := AppendStageReply(nil, scan, blocks[:3])
	for range 1000 {
		for _, good := range [][]byte{request, reply} {
			bad := bytes.Clone(good)
			bad[rand.IntN(len(bad))] ^= 1 << rand.IntN(8)
			r := NewReader(bytes.NewReader(bad))
			err := r.Fill()
			f, ok, err2 := r.Next()
			if err = errors.Join(err, err2); err == nil && ok {
				if _, err = f.Stage(); &good[0] == &reply[0] {
					_, _, err = f.StageReply(nil)
				}
			}
			r.Close()
			if ok && err == nil {
				t.Fatal("a damaged frame was taken")
			}
		}
	}
}

// TestStageInDisorder refuses what no peer of ours sends.
func TestStageInDisorder(t *testing.T) {
	v := block.Version{Epoch: 1, N: 1}
	twice := []block.Staged{{Block: 1, Version: v}, {Block: 1, Version: v}}
	if _, err := whole(t, AppendStage(nil, v, twice)).Stage(); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
	for _, blocks := range [][]block.Staged{twice, {{Block: 1, Stored: true}}, {{Block: 1, Version: v, Data: randomBlocks(1, 1)}}} {
		b, _ := AppendStageReply(nil, v, blocks)
		if _, _, err := whole(t, b).StageReply(nil); !errors.Is(err, ErrFormat) {
			t.Errorf("%+v: %v", blocks, err)
		}
	}
	full := make([]block.Staged, block.MostStaged)
	b, _ := AppendStageReply(nil, v, []block.Staged{{Block: 1, Version: v}})
	if _, _, err := whole(t, b).StageReply(full); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}
