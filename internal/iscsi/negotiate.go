package iscsi

import (
	"strconv"
	"strings"

	"github.com/cstor-go/cstor/internal/iscsi/pdu"
)

// What the target offers (RFC 7143 13).
const (
	ourFirstBurst = 256 << 10
	ourMaxBurst   = 1 << 20
	ourMaxR2T     = 16
	maxNumber     = 1<<24 - 1 // upper limit of the length keys
)

// negotiation is the state of the keys of one login, with the target as the responder.
type negotiation struct {
	par       pdu.Params
	initiator string
	target    string
	discovery bool
	declared  bool // our MaxRecvDataSegmentLength was sent
	seen      map[string]bool
}

func newNegotiation() *negotiation {
	return &negotiation{par: pdu.DefaultParams(), seen: map[string]bool{}}
}

// rule answers one key of an initiator; an empty answer means that none is sent.
type rule func(n *negotiation, value string) (answer string, err error)

// rules has every key that may come in a login request.
var rules = map[string]rule{
	"InitiatorName":  func(n *negotiation, v string) (string, error) { return "", setName(&n.initiator, v) },
	"TargetName":     func(n *negotiation, v string) (string, error) { return "", setName(&n.target, v) },
	"InitiatorAlias": declaration,
	"SessionType": func(n *negotiation, v string) (string, error) {
		if v != "Normal" && v != "Discovery" {
			return "", refuse(initiatorError, detailSessionType, "SessionType=%s", v)
		}
		n.discovery = v == "Discovery"
		return "", nil
	},
	"AuthMethod": func(n *negotiation, v string) (string, error) {
		if !has(v, "None") {
			return "", refuse(initiatorError, detailAuthFailed, "AuthMethod=%s, only None is offered", v)
		}
		return "None", nil
	},
	"HeaderDigest":        digestRule(func(p *pdu.Params) *bool { return &p.HeaderDigest }),
	"DataDigest":          digestRule(func(p *pdu.Params) *bool { return &p.DataDigest }),
	"MaxConnections":      numberRule(1, 65535, func(*pdu.Params, int) int { return 1 }),
	"InitialR2T":          boolRule(func(p *pdu.Params, v bool) bool { p.InitialR2T = v; return v }),
	"ImmediateData":       boolRule(func(p *pdu.Params, v bool) bool { p.ImmediateData = v; return v }),
	"DataPDUInOrder":      boolRule(func(*pdu.Params, bool) bool { return true }),
	"DataSequenceInOrder": boolRule(func(*pdu.Params, bool) bool { return true }),
	"MaxRecvDataSegmentLength": func(n *negotiation, v string) (string, error) {
		x, ok := number(v, 512, maxNumber)
		if !ok {
			return "Reject", nil
		}
		n.par.MaxSend = min(x, pdu.MaxSegment)
		return n.declare(), nil
	},
	"MaxBurstLength": numberRule(512, maxNumber, func(p *pdu.Params, x int) int {
		p.MaxBurst = min(x, ourMaxBurst)
		return p.MaxBurst
	}),
	"FirstBurstLength": numberRule(512, maxNumber, func(p *pdu.Params, x int) int {
		p.FirstBurst = min(x, ourFirstBurst)
		return p.FirstBurst
	}),
	"MaxOutstandingR2T": numberRule(1, 65535, func(p *pdu.Params, x int) int {
		p.MaxR2T = min(x, ourMaxR2T)
		return p.MaxR2T
	}),
	"DefaultTime2Wait":   numberRule(0, 3600, func(p *pdu.Params, x int) int { p.Time2Wait = x; return x }), // the larger of ours, 0, and theirs
	"DefaultTime2Retain": numberRule(0, 3600, func(p *pdu.Params, x int) int { p.Time2Retain = 0; return 0 }),
	"ErrorRecoveryLevel": numberRule(0, 2, func(*pdu.Params, int) int { return 0 }),
	"iSCSIProtocolLevel": numberRule(0, 31, func(_ *pdu.Params, x int) int { return min(x, 1) }),
	"TaskReporting": func(n *negotiation, v string) (string, error) {
		if has(v, "RFC3720") {
			return "RFC3720", nil
		}
		return "Reject", nil
	},
	"OFMarker":  func(*negotiation, string) (string, error) { return "No", nil },
	"IFMarker":  func(*negotiation, string) (string, error) { return "No", nil },
	"OFMarkInt": func(*negotiation, string) (string, error) { return "Irrelevant", nil },
	"IFMarkInt": func(*negotiation, string) (string, error) { return "Irrelevant", nil },
}

// answer negotiates the pairs of one request in the given stage.
func (n *negotiation) answer(stage int, pairs []pdu.Pair) (out []pdu.Pair, err error) {
	for _, p := range pairs {
		if n.seen[p.Key] {
			return nil, refuse(initiatorError, detailInitiatorError, "key %s is given twice", p.Key)
		}
		if len(n.seen) >= 128 {
			return nil, refuse(initiatorError, detailInitiatorError, "more than 128 keys")
		}
		n.seen[p.Key] = true
		r, ok := rules[p.Key]
		if !ok {
			out = append(out, pdu.Pair{Key: p.Key, Value: "NotUnderstood"})
			continue
		}
		if p.Value == "NotUnderstood" || p.Value == "Reject" || p.Value == "Irrelevant" {
			continue // the end of the negotiation of a key of ours
		}
		v, err := r(n, p.Value)
		if err != nil {
			return nil, err
		}
		if v != "" {
			out = append(out, pdu.Pair{Key: p.Key, Value: v})
		}
	}
	if stage == pdu.StageOperational {
		if v := n.declare(); v != "" {
			out = append(out, pdu.Pair{Key: "MaxRecvDataSegmentLength", Value: v})
		}
	}
	return out, nil
}

// declare returns the value of our MaxRecvDataSegmentLength the first time that it is called.
func (n *negotiation) declare() string {
	if n.declared {
		return ""
	}
	n.declared = true
	n.par.MaxRecv = pdu.MaxSegment
	return strconv.Itoa(pdu.MaxSegment)
}

func declaration(*negotiation, string) (string, error) { return "", nil }

func setName(to *string, v string) error {
	if v == "" || len(v) > 223 { // RFC 7143 4.2.7.1
		return refuse(initiatorError, detailInitiatorError, "iSCSI name of %d bytes", len(v))
	}
	*to = v
	return nil
}

// digestRule takes the first of the initiator's choices that we know (RFC 7143 13.1).
func digestRule(field func(*pdu.Params) *bool) rule {
	return func(n *negotiation, list string) (string, error) {
		for _, v := range strings.Split(list, ",") {
			if v == "CRC32C" || v == "None" {
				*field(&n.par) = v == "CRC32C"
				return v, nil
			}
		}
		return "Reject", nil
	}
}

func boolRule(result func(p *pdu.Params, v bool) bool) rule {
	return func(n *negotiation, v string) (string, error) {
		if v != "Yes" && v != "No" {
			return "Reject", nil
		}
		if result(&n.par, v == "Yes") {
			return "Yes", nil
		}
		return "No", nil
	}
}

func numberRule(lo, hi int, result func(p *pdu.Params, x int) int) rule {
	return func(n *negotiation, v string) (string, error) {
		x, ok := number(v, lo, hi)
		if !ok {
			return "Reject", nil
		}
		return strconv.Itoa(result(&n.par, x)), nil
	}
}

// number reads a numerical value: decimal or 0x hexadecimal (RFC 7143 6.1).
func number(v string, lo, hi int) (int, bool) {
	base := 10
	if rest, ok := strings.CutPrefix(strings.ToLower(v), "0x"); ok {
		v, base = rest, 16
	}
	x, err := strconv.ParseUint(v, base, 31)
	return int(x), err == nil && int(x) >= lo && int(x) <= hi
}

func has(list, v string) bool {
	for _, x := range strings.Split(list, ",") {
		if x == v {
			return true
		}
	}
	return false
}

// finish checks what the keys say together.
func (n *negotiation) finish() error {
	if n.par.FirstBurst > n.par.MaxBurst {
		n.par.FirstBurst = n.par.MaxBurst // RFC 7143 13.14: it must not exceed it; a default may
	}
	if n.initiator == "" {
		return refuse(initiatorError, detailMissing, "no InitiatorName")
	}
	if !n.discovery && n.target == "" {
		return refuse(initiatorError, detailMissing, "no TargetName")
	}
	return nil
}
