package pool

import (
	"runtime"
	"testing"
)

func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(2)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "2")
	if Processors(); runtime.GOMAXPROCS(0) != 2 {
		t.Error("changed although the environment says how many")
	}
	t.Setenv("GOMAXPROCS", "")
	if Processors(); runtime.GOMAXPROCS(0) != 4 {
		t.Errorf("%d processors for 2 CPUs", runtime.GOMAXPROCS(0))
	}
	runtime.GOMAXPROCS(16)
	if Processors(); runtime.GOMAXPROCS(0) != 32 {
		t.Errorf("%d processors for 16 CPUs", runtime.GOMAXPROCS(0))
	}
}
