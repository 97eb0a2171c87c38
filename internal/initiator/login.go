package initiator

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/iscsi/pdu"
)

// link is one connection in full feature phase.
type link struct {
	nc     net.Conn
	in     *pdu.Reader
	out    *pdu.Sender
	par    pdu.Params
	cmdSN  uint32 // of the next command; guarded by the session's lock
	maxSN  uint32 // the last that the target takes; guarded by the session's lock
	exp    uint32 // ExpStatSN; guarded by the session's lock
	lastRx atomic.Int64
}

func (l *link) flush() {
	l.out.Lock()
	l.out.UnlockAndFlush()
}

// LoginError is a login that the target refused (RFC 7143 11.13.5).
type LoginError struct{ Class, Detail uint8 }

func (e *LoginError) Error() string {
	return fmt.Sprintf("login refused: status class %d detail %d", e.Class, e.Detail)
}

// login connects and runs the login phase (RFC 7143 6.3) of a normal session, or of a discovery session if there is no
// target name.
func login(ctx context.Context, cfg *Config) (l *link, err error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.LoginTimeout)
	defer cancel()
	nc, err := dial(ctx, cfg.Portal)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			nc.Close()
			err = fmt.Errorf("iSCSI login to %s: %w", cfg.Portal, err)
		}
	}()
	deadline, _ := ctx.Deadline()
	nc.SetDeadline(deadline)
	l = &link{nc: nc, par: pdu.DefaultParams(), cmdSN: 1}
	l.par.MaxRecv = cfg.MaxReceive
	names := []pdu.Pair{{Key: "InitiatorName", Value: cfg.InitiatorName}, {Key: "SessionType", Value: "Discovery"}}
	if cfg.TargetName != "" {
		names[1].Value = "Normal"
		names = append(names, pdu.Pair{Key: "TargetName", Value: cfg.TargetName})
	}
	stages := []struct {
		current, next int
		keys          []pdu.Pair
	}{
		{pdu.StageSecurity, pdu.StageOperational, append(names, pdu.Pair{Key: "AuthMethod", Value: "None"})},
		{pdu.StageOperational, pdu.StageFull, offer(cfg)},
	}
	for _, st := range stages {
		if err := l.stage(cfg, st.current, st.next, st.keys); err != nil {
			return nil, err
		}
	}
	nc.SetDeadline(time.Time{})
	l.in = pdu.NewReader(nc, &l.par)
	if l.out, err = pdu.NewSender(nc, &l.par); err != nil {
		return nil, err
	}
	l.lastRx.Store(time.Now().UnixNano())
	return l, nil
}

// offer lists the operational keys.
func offer(cfg *Config) []pdu.Pair {
	digest := func(on bool) string {
		if on {
			return "CRC32C"
		}
		return "None"
	}
	bool := func(on bool) string {
		if on {
			return "Yes"
		}
		return "No"
	}
	keys := []pdu.Pair{
		{Key: "HeaderDigest", Value: digest(cfg.HeaderDigest)},
		{Key: "DataDigest", Value: digest(cfg.DataDigest)},
		{Key: "MaxRecvDataSegmentLength", Value: strconv.Itoa(cfg.MaxReceive)},
		{Key: "ErrorRecoveryLevel", Value: "0"},
		{Key: "DefaultTime2Wait", Value: "0"},
		{Key: "DefaultTime2Retain", Value: "0"},
	}
	if cfg.TargetName == "" {
		return keys
	}
	return append(keys, []pdu.Pair{
		{Key: "MaxConnections", Value: "1"},
		{Key: "InitialR2T", Value: bool(cfg.InitialR2T)},
		{Key: "ImmediateData", Value: bool(!cfg.NoImmediateData)},
		{Key: "MaxBurstLength", Value: strconv.Itoa(cfg.MaxBurst)},
		{Key: "FirstBurstLength", Value: strconv.Itoa(min(cfg.FirstBurst, cfg.MaxBurst))},
		{Key: "MaxOutstandingR2T", Value: strconv.Itoa(cfg.MaxR2T)},
		{Key: "DataPDUInOrder", Value: "Yes"},
		{Key: "DataSequenceInOrder", Value: "Yes"},
	}...)
}

// stage sends the keys of a stage and repeats until the target agrees to go to the next.
func (l *link) stage(cfg *Config, current, next int, keys []pdu.Pair) error {
	for range 16 {
		h := pdu.New(pdu.LoginReq, pdu.Transit|byte(current<<2|next))
		h.SetImmediate()
		h.SetSessionID(cfg.ISID, 0)
		h.SetITT(1)
		h.SetCmdSN(l.cmdSN)
		h.SetExpStatSN(l.exp)
		if err := pdu.WriteOne(l.nc, &h, pdu.AppendText(nil, keys...)); err != nil {
			return err
		}
		keys = nil
		var text []byte
		for {
			r, data, err := pdu.ReadOne(l.nc, 64<<10)
			if err != nil {
				return err
			}
			if r.Opcode() != pdu.LoginResp {
				return fmt.Errorf("opcode %#x in answer to a login request", r.Opcode())
			}
			if r[36] != 0 {
				return &LoginError{r[36], r[37]}
			}
			l.exp, l.maxSN = r.StatSN()+1, r.MaxCmdSN()
			text = append(text, data...)
			if !r.Has(pdu.Continue) {
				h = r
				break
			}
			if err := pdu.WriteOne(l.nc, &h, nil); err != nil {
				return err
			}
		}
		pairs, err := pdu.ParseText(text)
		if err != nil {
			return err
		}
		if err := l.accept(pairs); err != nil {
			return err
		}
		if h.Has(pdu.Transit) {
			return nil
		}
	}
	return fmt.Errorf("stage %d does not end", current)
}

// accept takes over what the target answered.
func (l *link) accept(pairs []pdu.Pair) error {
	for _, p := range pairs {
		n, numErr := strconv.Atoi(p.Value)
		yes := p.Value == "Yes"
		number := func(to *int, lo int) error {
			if numErr != nil || n < lo {
				return fmt.Errorf("%s=%s", p.Key, p.Value)
			}
			*to = n
			return nil
		}
		var err error
		switch p.Key {
		case "HeaderDigest":
			l.par.HeaderDigest = p.Value == "CRC32C"
		case "DataDigest":
			l.par.DataDigest = p.Value == "CRC32C"
		case "InitialR2T":
			l.par.InitialR2T = yes
		case "ImmediateData":
			l.par.ImmediateData = yes
		case "MaxRecvDataSegmentLength":
			err = number(&l.par.MaxSend, 512)
		case "MaxBurstLength":
			err = number(&l.par.MaxBurst, 512)
		case "FirstBurstLength":
			err = number(&l.par.FirstBurst, 512)
		case "MaxOutstandingR2T":
			err = number(&l.par.MaxR2T, 1)
		case "AuthMethod":
			if p.Value != "None" {
				err = fmt.Errorf("AuthMethod=%s", p.Value)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Target is what discovery finds.
type Target struct {
	Name    string
	Portals []string // "host:port,tag"
}

// Discover asks a portal for its targets (SendTargets=All).
func Discover(ctx context.Context, cfg Config) ([]Target, error) {
	cfg.TargetName = ""
	cfg.setDefaults()
	l, err := login(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	defer l.nc.Close()
	defer l.in.Close()
	if d, ok := ctx.Deadline(); ok {
		l.nc.SetDeadline(d)
	}
	h := pdu.New(pdu.TextReq, pdu.Final)
	h.SetITT(2)
	h.SetTTT(pdu.NoTag)
	h.SetCmdSN(l.cmdSN)
	h.SetExpStatSN(l.exp)
	l.out.Lock()
	l.out.Append(&h, pdu.AppendText(nil, pdu.Pair{Key: "SendTargets", Value: "All"}), nil)
	l.out.UnlockAndFlush()
	for {
		ok, err := l.in.Next()
		if err == nil && !ok {
			if err = l.in.Fill(); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, fmt.Errorf("discovery at %s: %w", cfg.Portal, err)
		}
		if l.in.Header.Opcode() != pdu.TextResp {
			continue
		}
		pairs, err := pdu.ParseText(l.in.Data)
		if err != nil {
			return nil, err
		}
		var found []Target
		for _, p := range pairs {
			if p.Key == "TargetName" {
				found = append(found, Target{Name: p.Value})
			} else if p.Key == "TargetAddress" && len(found) > 0 {
				t := &found[len(found)-1]
				t.Portals = append(t.Portals, strings.TrimSpace(p.Value))
			}
		}
		return found, nil
	}
}
