package iscsi

import (
	"fmt"
	"net"

	"github.com/cstor-go/cstor/internal/iscsi/pdu"
)

// nopOut handles a NOP-Out (RFC 7143 11.18): a ping is answered with its own data; the answer to our ping needs
// nothing, since anything that comes shows that the initiator is alive.
func (ss *session) nopOut(h *pdu.Header, data []byte) error {
	if h.ITT() == pdu.NoTag {
		return nil
	}
	r := pdu.New(pdu.NopIn, pdu.Final)
	r.SetLUN(h.LUN())
	r.SetITT(h.ITT())
	r.SetTTT(pdu.NoTag)
	data = append([]byte(nil), data[:min(len(data), ss.par.MaxSend)]...)
	ss.out.Lock()
	ss.expSN = ss.rxSN
	ss.number(&r, true)
	ss.out.Append(&r, data, nil)
	ss.out.Unlock()
	return nil
}

// maxText is the length of all the keys of a text request together.
const maxText = 8192

// textRequest handles a Text Request (RFC 7143 11.10): SendTargets, and negotiations that change nothing.
func (ss *session) textRequest(h *pdu.Header, data []byte) error {
	if ss.text = append(ss.text, data...); len(ss.text) > maxText {
		return ss.protocolError(h, pdu.RejectInvalidField, "too much text")
	}
	if h.Has(pdu.Continue) {
		ss.textResponse(h, nil, false)
		return nil
	}
	pairs, err := pdu.ParseText(ss.text)
	ss.text = nil
	if err != nil {
		return ss.protocolError(h, pdu.RejectProtocolError, err.Error())
	}
	var out []pdu.Pair
	for _, p := range pairs {
		switch {
		case p.Key == "SendTargets":
			out = append(out, ss.sendTargets(p.Value)...)
		case rules[p.Key] != nil:
			out = append(out, pdu.Pair{Key: p.Key, Value: "Reject"}) // only at login
		default:
			out = append(out, pdu.Pair{Key: p.Key, Value: "NotUnderstood"})
		}
	}
	ss.textResponse(h, pdu.AppendText(nil, out...), true)
	return nil
}

func (ss *session) textResponse(h *pdu.Header, data []byte, final bool) {
	r := pdu.New(pdu.TextResp, 0)
	r.SetTTT(pdu.NoTag)
	if final {
		r[1] = pdu.Final
	} else {
		r.SetTTT(h.ITT() &^ 0x80000000)
	}
	r.SetITT(h.ITT())
	ss.out.Lock()
	ss.expSN = ss.rxSN
	ss.number(&r, true)
	ss.out.Append(&r, data[:min(len(data), ss.par.MaxSend)], nil)
	ss.out.Unlock()
}

// sendTargets lists the target (RFC 7143 appendix C): all there is in a discovery session, the one that the session is
// with in a normal one, or one by its name.
func (ss *session) sendTargets(want string) []pdu.Pair {
	cfg := &ss.srv.cfg
	if want != cfg.TargetName && !(want == "All" && ss.discovery) && !(want == "" && !ss.discovery) {
		if want == "All" {
			return []pdu.Pair{{Key: "SendTargets", Value: "Reject"}}
		}
		return nil
	}
	portal := cfg.Portal
	if portal == "" {
		portal = ss.nc.LocalAddr().String()
	} else if _, _, err := net.SplitHostPort(portal); err != nil {
		portal = net.JoinHostPort(portal, "3260")
	}
	return []pdu.Pair{
		{Key: "TargetName", Value: cfg.TargetName},
		{Key: "TargetAddress", Value: fmt.Sprintf("%s,%d", portal, cfg.PortalTag)},
	}
}

// logout handles a Logout Request (RFC 7143 11.14). The connection is closed after the response; commands that have
// none yet are aborted.
func (ss *session) logout(h *pdu.Header) error {
	r := pdu.New(pdu.LogoutResp, pdu.Final)
	r.SetITT(h.ITT())
	if h[1]&0x7f == 2 { // remove the connection for recovery
		r[2] = 2 // connection recovery is not supported
	}
	ss.submit()
	ss.out.Lock()
	ss.expSN = ss.rxSN
	ss.number(&r, true)
	ss.out.Append(&r, nil, nil)
	ss.out.UnlockAndFlush()
	if r[2] != 0 {
		return nil
	}
	return errLogout
}
