package scsi

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func unit() *Unit {
	return &Unit{Vendor: "OpenEBS", Product: "iscsi", Revision: "0", Serial: "0f7c", Target: "iqn.t", PortTag: 1,
		Size: func() int64 { return 1 << 30 }} // 2097152 logical blocks
}

func cdb(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return append(b, make([]byte, 16-len(b))...)
}

func TestStart(t *testing.T) {
	for _, c := range []struct {
		what, cdb string
		want      Plan
		sense     Sense
	}{
		{"READ(6), 0 means 256", "080000100000", Plan{Kind: Read, Offset: 8192, Length: 131072, InLen: 131072}, Sense{}},
		{"READ(10)", "28000000000800000800", Plan{Kind: Read, Offset: 4096, Length: 4096, InLen: 4096}, Sense{}},
		{"READ(10), DPO and FUA", "28180000000800000800", Plan{Kind: Read, Offset: 4096, Length: 4096, InLen: 4096}, Sense{}},
		{"READ(16)", "88000000000000000008000000080000", Plan{Kind: Read, Offset: 4096, Length: 4096, InLen: 4096}, Sense{}},
		{"READ(10), nothing", "28000000000800000000", Plan{Kind: Answer, Offset: 4096}, Sense{}},
		{"READ(10), the last", "2800001fffff00000100", Plan{Kind: Read, Offset: 1<<30 - 512, Length: 512, InLen: 512}, Sense{}},
		{"READ(10), past the end", "2800001fffff00000200", Plan{}, LBAOutOfRange},
		{"READ(16), overflow", "8800ffffffffffffffff000000020000", Plan{}, LBAOutOfRange},
		{"READ(10), RDPROTECT", "28200000000800000800", Plan{}, InvalidField(1, 7)},
		{"READ(12), too long", "a80000000000000020010000", Plan{}, InvalidField(6, 7)},
		{"WRITE(10), FUA", "2a080000000800000800", Plan{Kind: Write, FUA: true, Offset: 4096, Length: 4096, OutLen: 4096}, Sense{}},
		{"VERIFY(10)", "2f000000000800000800", Plan{Kind: Verify, Offset: 4096, Length: 4096}, Sense{}},
		{"VERIFY(10), BYTCHK", "2f020000000800000800", Plan{Kind: Compare, Offset: 4096, Length: 4096, OutLen: 4096}, Sense{}},
		{"SYNCHRONIZE CACHE(10), IMMED", "35020000000000000000", Plan{Kind: Flush, Immed: true}, Sense{}},
		{"UNMAP", "42000000000000001800", Plan{Kind: Parameter, OutLen: 24}, Sense{}},
		{"UNMAP, ANCHOR", "42010000000000001800", Plan{}, InvalidField(1, 0)},
		{"WRITE SAME(16), NDOB", "93090000000000000008000000080000", Plan{Kind: WriteSame, Offset: 4096, Length: 4096}, Sense{}},
		{"WRITE SAME(10), no blocks", "41000000000000000000", Plan{}, InvalidField(7, 7)},
		{"INQUIRY, unknown page", "1201c100ff00", Plan{}, InvalidField(2, 7)},
		{"MODE SENSE, saved", "1a00c800ff00", Plan{}, SavingNotSupported},
		{"NACA", "000000000004", Plan{}, InvalidField(5, 2)},
		{"COMPARE AND WRITE", "89000000000000000008000000010000", Plan{}, InvalidOpcode},
		{"PERSISTENT RESERVE IN", "5e000000000000001000", Plan{}, InvalidOpcode},
	} {
		var p Plan
		s := unit().Start(cdb(c.cdb), &p)
		if s != c.sense {
			t.Errorf("%s: %v, want %v", c.what, s, c.sense)
		}
		if p.op = 0; s.IsZero() && (p.Kind != c.want.Kind || p.FUA != c.want.FUA || p.Immed != c.want.Immed || p.Offset != c.want.Offset ||
			p.Length != c.want.Length || p.InLen != c.want.InLen || p.OutLen != c.want.OutLen) {
			t.Errorf("%s: %+v, want %+v", c.what, p, c.want)
		}
	}
}

func TestParameters(t *testing.T) {
	for _, c := range []struct {
		what, cdb, list string
		ranges          int
		sense           Sense
	}{
		{"two ranges", "42000000000000002800", "0026002000000000" + "0000000000000008" + "0000000800000000" + "0000000000000100" + "0000000800000000", 2, Sense{}},
		{"an empty range", "42000000000000001800", "0016001000000000" + "0000000000000008" + "0000000000000000", 0, Sense{}},
		{"past the end", "42000000000000001800", "0016001000000000" + "00000000001fffff" + "0000000200000000", 0, LBAOutOfRange},
		{"above the limit", "42000000000000001800", "0016001000000000" + "0000000000000000" + "0010000100000000", 0, InvalidParameter(16)},
		{"short", "42000000000000000400", "00160010", 0, ParameterLength},
		{"same caching page", "151000001800", "00000000" + "08120400" + "00000000000000000000000000000000", 0, Sense{}},
		{"write cache off", "151000001800", "00000000" + "08120000" + "00000000000000000000000000000000", 0, InvalidParameter(6)},
		{"unknown page", "151000000600", "00000000" + "3e00", 0, InvalidParameter(4)},
	} {
		var p Plan
		if s := unit().Start(cdb(c.cdb), &p); !s.IsZero() {
			t.Errorf("%s: %v", c.what, s)
			continue
		}
		b, _ := hex.DecodeString(c.list)
		got, s := unit().Parameters(&p, b)
		if s != c.sense || len(got) != c.ranges {
			t.Errorf("%s: %v %v, want %d ranges, %v", c.what, got, s, c.ranges, c.sense)
		}
	}
}

// TestModeSelectOfSense sends back what MODE SENSE says, which must be accepted.
func TestModeSelectOfSense(t *testing.T) {
	for _, c := range []struct{ sense, sel string }{
		{"1a003f00ff00", "15100000"}, {"5a003f0000000000ff00", "5510000000000000"}, {"5a103f0000000000ff00", "5510000000000000"},
	} {
		var p, q Plan
		if s := unit().Start(cdb(c.sense), &p); !s.IsZero() {
			t.Fatal(s)
		}
		b := cdb(c.sel + hex.EncodeToString([]byte{byte(len(p.In))}) + "00")
		if s := unit().Start(b, &q); !s.IsZero() {
			t.Fatal(s)
		}
		if _, s := unit().Parameters(&q, p.In); !s.IsZero() {
			t.Errorf("%s: %v", c.sense, s)
		}
	}
}

func TestSense(t *testing.T) {
	s := InvalidField(7, 3)
	if got, want := s.Fixed(), cdb("700005000000000a"); !bytes.Equal(got[:8], want[:8]) || !bytes.Equal(got[12:], []byte{0x24, 0, 0, 0xcb, 0, 7}) {
		t.Errorf("fixed: %x", got)
	}
	for _, b := range [][]byte{s.Fixed(), s.Descriptor()} {
		if got, ok := ParseSense(b); !ok || !got.Is(s) {
			t.Errorf("%x is read as %v", b, got)
		}
	}
}

// TestSupportedOpcodes checks that every command that is reported is also executed.
func TestSupportedOpcodes(t *testing.T) {
	for _, c := range commands {
		b := make([]byte, 16)
		b[0], b[1] = c.op, byte(max(c.action, 0))
		var p Plan
		if s := unit().Start(b, &p); s.Is(InvalidOpcode) {
			t.Errorf("%#x is reported, but: %v", c.op, s)
		}
	}
}

func FuzzUnit(f *testing.F) {
	for _, s := range []string{"12", "28000000000800000800", "42000000000000001800", "1a003f00ff00", "a30c00000000000002000000", "9e12"} {
		f.Add(cdb(s), make([]byte, 24))
	}
	f.Fuzz(func(t *testing.T, b, list []byte) {
		var c [16]byte
		copy(c[:], b)
		var p Plan
		u := unit()
		if s := u.Start(c[:], &p); !s.IsZero() {
			return
		}
		if p.Offset < 0 || p.Length < 0 || p.Offset+p.Length > u.Size() || p.InLen > MaxTransfer || p.OutLen > MaxTransfer {
			t.Fatalf("%x: %+v", c, p)
		}
		if p.Kind != Parameter {
			return
		}
		ranges, _ := u.Parameters(&p, list)
		for _, r := range ranges {
			if r.Offset < 0 || r.Length <= 0 || r.Offset+r.Length > u.Size() {
				t.Fatalf("%x %x: %+v", c, list, ranges)
			}
		}
	})
}
