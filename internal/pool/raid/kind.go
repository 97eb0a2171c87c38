package raid

import "fmt"

// Kind is the layout of a group.
type Kind uint8

const (
	Stripe Kind = iota + 1 // one device, no redundancy; a stripe of n devices is n groups
	Mirror                 // copies
	RAIDZ                  // one parity block per row
	RAIDZ2                 // two parity blocks per row
)

var kindNames = [...]string{Stripe: "stripe", Mirror: "mirror", RAIDZ: "raidz", RAIDZ2: "raidz2"}

// MaxDevices is the highest number of columns of a group.
const MaxDevices = 64

// String returns the name that a CSPC uses.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// ParseKind is the inverse of String.
func ParseKind(s string) (Kind, error) {
	for k, name := range kindNames {
		if name != "" && name == s {
			return Kind(k), nil
		}
	}
	return 0, fmt.Errorf("raid type %q: want stripe, mirror, raidz or raidz2", s)
}

// Shape returns how many data and parity blocks a row of a group of that many devices has, or an error that says which
// numbers of devices the kind takes.
func (k Kind) Shape(devices int) (data, parity int, err error) {
	powerOf2 := func(n int) bool { return n > 0 && n&(n-1) == 0 }
	want := ""
	switch k {
	case Stripe:
		if devices == 1 {
			return 1, 0, nil
		}
		want = "1 device per group"
	case Mirror:
		if devices >= 2 && devices <= MaxDevices {
			return 1, devices - 1, nil
		}
		want = "2 devices or more"
	case RAIDZ:
		if d := devices - 1; d >= 2 && devices <= MaxDevices && powerOf2(d) {
			return d, 1, nil
		}
		want = "2^n+1 devices, n > 0: 3, 5, 9, 17 or 33"
	case RAIDZ2:
		if d := devices - 2; d >= 4 && devices <= MaxDevices && powerOf2(d) {
			return d, 2, nil
		}
		want = "2^n+2 devices, n > 1: 6, 10, 18 or 34"
	default:
		return 0, 0, fmt.Errorf("raid type %d is not known", uint8(k))
	}
	return 0, 0, fmt.Errorf("%s of %d devices: it takes %s", k, devices, want)
}
