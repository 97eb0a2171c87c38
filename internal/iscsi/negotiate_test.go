package iscsi

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/iscsi/memdisk"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
)

func TestNegotiate(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"HeaderDigest", "CRC32C,None", "CRC32C"},
		{"HeaderDigest", "None,CRC32C", "None"},
		{"DataDigest", "SHA256", "Reject"},
		{"InitialR2T", "Yes", "Yes"},
		{"InitialR2T", "No", "No"},
		{"ImmediateData", "Yes", "Yes"},
		{"ImmediateData", "maybe", "Reject"},
		{"MaxBurstLength", "16776192", "1048576"},
		{"MaxBurstLength", "0x1000", "4096"},
		{"MaxBurstLength", "511", "Reject"},
		{"FirstBurstLength", "65536", "65536"},
		{"FirstBurstLength", "1048576", "262144"},
		{"MaxRecvDataSegmentLength", "8192", "262144"},
		{"MaxConnections", "8", "1"},
		{"MaxOutstandingR2T", "1", "1"},
		{"MaxOutstandingR2T", "99", "16"},
		{"ErrorRecoveryLevel", "2", "0"},
		{"DataPDUInOrder", "No", "Yes"},
		{"DefaultTime2Wait", "2", "2"},
		{"DefaultTime2Retain", "20", "0"},
		{"AuthMethod", "CHAP,None", "None"},
		{"IFMarker", "No", "No"},
		{"X-org.example.key", "1", "NotUnderstood"},
	} {
		n := newNegotiation()
		got, err := n.answer(pdu.StageSecurity, []pdu.Pair{{Key: c.key, Value: c.value}})
		if err != nil || len(got) != 1 || got[0].Value != c.want {
			t.Errorf("%s=%s: answer %v, %v; want %s", c.key, c.value, got, err, c.want)
		}
	}
	n := newNegotiation()
	if got, err := n.answer(pdu.StageOperational, nil); err != nil || len(got) != 1 || n.par.MaxRecv != pdu.MaxSegment {
		t.Errorf("MaxRecvDataSegmentLength is not declared: %v, %v", got, err)
	}
	n.answer(pdu.StageOperational, []pdu.Pair{{Key: "MaxBurstLength", Value: "4096"}, {Key: "InitiatorName", Value: "i"}, {Key: "TargetName", Value: "t"}})
	if err := n.finish(); err != nil || n.par.FirstBurst > n.par.MaxBurst {
		t.Errorf("FirstBurstLength %d above MaxBurstLength %d (%v)", n.par.FirstBurst, n.par.MaxBurst, err)
	}
}

func TestLoginRefusals(t *testing.T) {
	name := pdu.Pair{Key: "InitiatorName", Value: "iqn.2024-01.org.example:i"}
	to := pdu.Pair{Key: "TargetName", Value: "iqn.t"}
	full := byte(pdu.Transit | pdu.StageOperational<<2 | pdu.StageFull)
	for _, c := range []struct {
		what          string
		flags         byte
		change        func(h *pdu.Header)
		pairs         []pdu.Pair
		class, detail byte
	}{
		{"good", full, nil, []pdu.Pair{name, to}, 0, 0},
		{"no initiator name", full, nil, []pdu.Pair{to}, 2, 7},
		{"no target name", full, nil, []pdu.Pair{name}, 2, 7},
		{"other target", full, nil, []pdu.Pair{name, {Key: "TargetName", Value: "iqn.u"}}, 2, 3},
		{"authentication", full, nil, []pdu.Pair{name, to, {Key: "AuthMethod", Value: "CHAP"}}, 2, 1},
		{"session type", full, nil, []pdu.Pair{name, to, {Key: "SessionType", Value: "Odd"}}, 2, 9},
		{"key twice", full, nil, []pdu.Pair{name, name, to}, 2, 0},
		{"version", full, func(h *pdu.Header) { h[3] = 1 }, []pdu.Pair{name, to}, 2, 5},
		{"unknown session", full, func(h *pdu.Header) { h.SetSessionID([6]byte{}, 77) }, []pdu.Pair{name, to}, 2, 0x0a},
		{"backwards", byte(pdu.Transit | pdu.StageOperational<<2 | pdu.StageSecurity), nil, []pdu.Pair{name, to}, 2, 0},
		{"T and C", full | pdu.Continue, nil, []pdu.Pair{name, to}, 2, 0},
		{"not a login", full, func(h *pdu.Header) { h[0] = byte(pdu.NopOut) }, []pdu.Pair{name, to}, 2, 0},
	} {
		h := pdu.New(pdu.LoginReq, c.flags)
		if c.change != nil {
			c.change(&h)
		}
		r := loginOnce(t, func(w io.Writer) { pdu.WriteOne(w, &h, pdu.AppendText(nil, c.pairs...)) })
		if len(r) < pdu.HeaderSize || r[36] != c.class || r[37] != c.detail {
			t.Errorf("%s: answer %x, want status %d/%d", c.what, r, c.class, c.detail)
		}
	}
}

// connect has a target listen and returns a connection to it. Both end with the test.
func connect(t testing.TB, s *Server) net.Conn {
	t.Helper()
	t.Cleanup(func() { s.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// loginOnce returns what the target answers to bytes that a connection begins with.
func loginOnce(t testing.TB, send func(w io.Writer)) []byte {
	t.Helper()
	s, err := NewServer(Config{TargetName: "iqn.t", Device: memdisk.New(1 << 20), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, s)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	send(c)
	c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, io.EOF) && len(b) == 0 {
		t.Logf("read: %v", err)
	}
	return b
}

// FuzzConnection feeds a connection arbitrary bytes, before and after login: it must end, and not panic.
func FuzzConnection(f *testing.F) {
	cmd := pdu.New(pdu.Command, pdu.Final|pdu.WriteBit)
	cmd.SetExpected(4096)
	copy(cmd.CDB(), []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0})
	f.Add(cmd[:], true)
	out := pdu.New(pdu.DataOut, pdu.Final)
	f.Add(append(cmd[:], out[:]...), true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), false)
	f.Add(bytes.Repeat([]byte{0x43}, 96), false)
	f.Fuzz(func(t *testing.T, b []byte, loggedIn bool) {
		loginOnce(t, func(w io.Writer) {
			if loggedIn {
				h := pdu.New(pdu.LoginReq, pdu.Transit|pdu.StageOperational<<2|pdu.StageFull)
				pdu.WriteOne(w, &h, pdu.AppendText(nil, pdu.Pair{Key: "InitiatorName", Value: "i"}, pdu.Pair{Key: "TargetName", Value: "iqn.t"}))
			}
			w.Write(b)
		})
	})
}
