package iscsi

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/cstor-go/cstor/internal/iscsi/memdisk"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
)

// TestDropDuringLogin drops the sessions while a login has found the volume ready and is not yet registered: it has to see
// that the volume is not ready any more.
func TestDropDuringLogin(t *testing.T) {
	var s *Server
	asked := 0
	s, err := NewServer(Config{TargetName: "iqn.t", Device: memdisk.New(1 << 20), Log: slog.New(slog.DiscardHandler),
		Ready: func() error {
			if asked++; asked > 1 {
				return errors.New("superseded")
			}
			s.Drop()
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, s)
	h := pdu.New(pdu.LoginReq, pdu.Transit|pdu.StageOperational<<2|pdu.StageFull)
	if err := pdu.WriteOne(c, &h, pdu.AppendText(nil, pdu.Pair{Key: "InitiatorName", Value: "i"}, pdu.Pair{Key: "TargetName", Value: "iqn.t"})); err != nil {
		t.Fatal(err)
	}
	answer, _, err := pdu.ReadOne(c, loginSegment)
	if err != nil {
		t.Fatal(err)
	}
	if answer[36] != targetError || answer[37] != detailUnavailable {
		t.Errorf("login ended with status %d/%d, want %d/%d", answer[36], answer[37], targetError, detailUnavailable)
	}
}
