package pdu

// Params are the operational parameters of a connection in full feature phase (RFC 7143 13).
type Params struct {
	HeaderDigest, DataDigest bool // CRC32C
	InitialR2T               bool
	ImmediateData            bool
	MaxSend                  int // what the peer declared as MaxRecvDataSegmentLength, bytes
	MaxRecv                  int // what we declared, bytes
	MaxBurst, FirstBurst     int // bytes
	MaxR2T                   int // outstanding R2Ts per task
	Time2Wait, Time2Retain   int // seconds
}

// DefaultParams returns what holds when nothing is negotiated.
func DefaultParams() Params {
	return Params{
		InitialR2T: true, ImmediateData: true,
		MaxSend: 8192, MaxRecv: 8192, MaxBurst: 262144, FirstBurst: 65536,
		MaxR2T: 1, Time2Wait: 2, Time2Retain: 20,
	}
}

// MaxSegment is the largest data segment that this package's Reader takes, and what both ends declare.
const MaxSegment = 256 << 10
