package v1

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

const units = "KMGTPE"

// FormatSize writes a number of bytes in the users' style, the way zfs does: at most five characters, powers of 1024,
// no more digits than fit (0, 230K, 1.47G, 96.3M, 9630M). CStorVolumeReplica.status.capacity is written so.
func FormatSize(bytes int64) string {
	if bytes < 0 {
		return "-" + FormatSize(-bytes)
	}
	unit, n := 0, bytes
	for n >= 1024 && unit < len(units) {
		n, unit = n/1024, unit+1
	}
	if unit == 0 {
		return strconv.FormatInt(bytes, 10)
	}
	if bytes&(1<<(10*unit)-1) == 0 {
		return strconv.FormatInt(n, 10) + units[unit-1:unit]
	}
	f := float64(bytes) / float64(int64(1)<<(10*unit))
	for digits := 2; ; digits-- {
		if s := strconv.FormatFloat(f, 'f', digits, 64) + units[unit-1:unit]; len(s) <= 5 || digits == 0 {
			return s
		}
	}
}

// ParseSize reads what FormatSize writes, to the precision that it has.
func ParseSize(s string) (int64, error) {
	number, shift := strings.TrimSuffix(s, "B"), 0
	if n := len(number); n > 0 {
		if i := strings.IndexByte(units, strings.ToUpper(number)[n-1]); i >= 0 {
			number, shift = number[:n-1], 10*(i+1)
		}
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: want a number with one of the suffixes %s", s, units)
	}
	return int64(f * float64(int64(1)<<shift)), nil
}

// leastBandwidth is the lowest limit for rebuilds, bytes/s: with less a chunk of 2 MiB might take so long that it is given up.
const leastBandwidth = 4 << 20

// RebuildBandwidth reads one of the fields of that name, as bytes/s; zero: no limit.
func RebuildBandwidth(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := ParseSize(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("rebuildBandwidth: %w", err)
	case n <= 0:
		return 0, nil
	}
	return max(n, leastBandwidth), nil
}

// PoolSize returns a number of bytes as a Quantity that prints in the style of `kubectl get cspi`: the digits that
// FormatSize would show, normalised (230k, 9630M, 10G). As in zfs the unit is a power of 1024, though a Quantity's
// suffix means a power of 1000; PoolBytes undoes that.
func PoolSize(bytes int64) resource.Quantity {
	return resource.MustParse(strings.Replace(FormatSize(bytes), "K", "k", 1))
}

// PoolBytes returns the bytes that PoolSize wrote, to the precision that it has.
func PoolBytes(q resource.Quantity) int64 {
	f := q.AsApproximateFloat64()
	power := int64(1)
	for limit := 1000.0; f >= limit && power < 1<<60; limit *= 1000 {
		power <<= 10
	}
	unit := 1.0
	for p := power; p > 1; p >>= 10 {
		unit *= 1000
	}
	return int64(f / unit * float64(power))
}

// PoolCapacity returns the space of a pool as its status shows it. All are in bytes; logical is used before compression.
func PoolCapacity(used, free, logical int64) CStorPoolInstanceCapacity {
	return CStorPoolInstanceCapacity{
		Used:  PoolSize(used),
		Free:  PoolSize(free),
		Total: PoolSize(used + free),
		ZFS:   ZFSCapacityAttributes{LogicalUsed: PoolSize(logical)},
	}
}
