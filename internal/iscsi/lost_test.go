package iscsi

import (
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/memdisk"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// TestLostTold flushes a device of which something may be lost. The device hears that the initiator knows when that has
// acknowledged the response, and not before.
func TestLostTold(t *testing.T) {
	var told atomic.Int32
	disk := memdisk.New(1 << 20)
	disk.Fault = func(r *block.Request) error {
		if r.Op == block.Flush && told.Load() == 0 {
			r.Told = func() { told.Add(1) }
			return block.ErrLost
		}
		return nil
	}
	s, err := NewServer(Config{TargetName: "iqn.t", Device: disk, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, s)
	ask := func(h pdu.Header, data []byte) (pdu.Header, []byte) {
		t.Helper()
		if err := pdu.WriteOne(c, &h, data); err != nil {
			t.Fatal(err)
		}
		answer, data, err := pdu.ReadOne(c, loginSegment)
		if err != nil {
			t.Fatal(err)
		}
		return answer, data
	}
	login := pdu.New(pdu.LoginReq, pdu.Transit|pdu.StageOperational<<2|pdu.StageFull)
	login.SetCmdSN(1)
	answer, _ := ask(login, pdu.AppendText(nil, pdu.Pair{Key: "InitiatorName", Value: "i"}, pdu.Pair{Key: "TargetName", Value: "iqn.t"}))

	sn, known := uint32(0), answer.StatSN()+1
	// command sends a CDB, saying that the initiator has all responses before known.
	command := func(opcode byte) (scsi.Status, scsi.Sense) {
		t.Helper()
		sn++
		h := pdu.New(pdu.Command, pdu.Final)
		h.SetITT(sn)
		h.SetCmdSN(sn)
		h.SetExpStatSN(known)
		h[32] = opcode
		answer, data := ask(h, nil)
		var sense scsi.Sense
		if len(data) > 2 {
			sense, _ = scsi.ParseSense(data[2:])
		}
		return scsi.Status(answer[3]), sense
	}
	const testUnitReady, synchronizeCache = 0x00, 0x35
	command(testUnitReady) // takes the unit attention
	known++
	for range 2 { // without having seen the response
		if status, sense := command(synchronizeCache); status != scsi.CheckCondition || !sense.Is(scsi.WritesLost) || told.Load() > 0 {
			t.Fatalf("flush: status %#x, %v; told %d times", status, sense, told.Load())
		}
	}
	known++
	if status, sense := command(synchronizeCache); status != scsi.Good || told.Load() != 1 {
		t.Fatalf("flush after that was acknowledged: status %#x, %v; told %d times", status, sense, told.Load())
	}
	known += 2
	if status, _ := command(synchronizeCache); status != scsi.Good || told.Load() != 2 {
		t.Errorf("flush after the other one was acknowledged: status %#x; told %d times", status, told.Load())
	}
	known++

	told.Store(0)
	for range 2 * maxTelling { // an initiator that acknowledges nothing
		command(synchronizeCache)
	}
	known += 2 * maxTelling
	command(testUnitReady)
	if n := told.Load(); n != maxTelling {
		t.Errorf("told %d times, want %d", n, maxTelling)
	}
}
