package v1

import "testing"

func TestFormatSize(t *testing.T) {
	const k, m, g = 1 << 10, 1 << 20, 1 << 30
	for _, c := range []struct {
		bytes int64
		size  string // as a CStorVolumeReplica shows it
		pool  string // as a CStorPoolInstance shows it
	}{
		{0, "0", "0"},
		{512, "512", "512"},
		{6 * k, "6K", "6k"},
		{230 * k, "230K", "230k"},
		{42*m + 400*k, "42.4M", "42400k"},
		{1023 * m, "1023M", "1023M"},
		{1023*m + 1, "1023M", "1023M"},
		{1*g + 481*m, "1.47G", "1470M"},
		{9*g + 645*m, "9.63G", "9630M"},
		{10 * g, "10G", "10G"},
		{1 << 40, "1T", "1T"},
		{3<<40 + 512*g, "3.50T", "3500G"},
	} {
		if got := FormatSize(c.bytes); got != c.size {
			t.Errorf("FormatSize(%d) = %s, want %s", c.bytes, got, c.size)
		}
		q := PoolSize(c.bytes)
		if got := q.String(); got != c.pool {
			t.Errorf("PoolSize(%d) = %s, want %s", c.bytes, got, c.pool)
		}
		near(t, "PoolBytes of "+c.pool, PoolBytes(q), c.bytes)
		parsed, err := ParseSize(c.size)
		if err != nil {
			t.Error(err)
		}
		near(t, "ParseSize of "+c.size, parsed, c.bytes)
	}
	if n, err := ParseSize("much"); err == nil {
		t.Errorf("ParseSize(much) = %d, want an error", n)
	}
}

// near checks that got is want to the precision that is shown. Between 1000 and 1023 of a unit a Quantity reads as one
// of the next unit, which is up to 2.4 % off.
func near(t *testing.T, what string, got, want int64) {
	t.Helper()
	if d := got - want; d > want/40 || -d > want/40 {
		t.Errorf("%s = %d, want about %d", what, got, want)
	}
}

func TestRebuildBandwidth(t *testing.T) {
	for said, want := range map[string]int64{"": 0, "0": 0, "100M": 100 << 20, "1.5G": 3 << 29, "1": leastBandwidth} {
		if n, err := RebuildBandwidth(said); n != want || err != nil {
			t.Errorf("%q is %d, %v, want %d", said, n, err, want)
		}
	}
	if _, err := RebuildBandwidth("much"); err == nil {
		t.Error("no number")
	}
}

func TestRebuildProgress(t *testing.T) {
	p := NewRebuildProgress(43<<20, 100<<20, 19<<20, "")
	if p.Done != "43%" || p.Rate != "19M/s" || p.ETA != "3s" || *p.SecondsLeft != 3 || p.Percent != 43 {
		t.Errorf("43 of 100 MiB at 19 MiB/s: %+v", *p)
	}
	if p := NewRebuildProgress(1<<30-1, 1<<30, 0, "source"); p.Done != "99%" || p.ETA != "" || p.SecondsLeft != nil {
		t.Errorf("all but one byte, standing still: %+v", *p)
	}
	if p := NewRebuildProgress(0, 0, 0, ""); p.Done != "0%" {
		t.Errorf("nothing known yet: %+v", *p)
	}
}

func TestReplicaID(t *testing.T) {
	a, b := ReplicaID("pvc-1", "pool-a"), ReplicaID("pvc-1", "pool-b")
	if a == b || a != ReplicaID("pvc-1", "pool-a") || len(a) > 32 {
		t.Errorf("replica ids %s and %s", a, b)
	}
}
