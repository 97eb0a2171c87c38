package volumes

import (
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestKilledAnywhere kills the operator at the k-th write of each reconciliation of a migration and of what follows.
// Whatever k is, the result is the one without a kill.
func TestKilledAnywhere(t *testing.T) {
	script := strings.Split(`pool a;pool b;pool c;new replicas=2;R;found;edit a b c;R;target adopt;target promote c;R;edit a c;R;
		target adopt;target remove;R;destroyed b;R;edit a c b;R;target adopt;edit a c;R;target adopt;R;destroyed b;R;
		delete;R;destroyed a;destroyed c;R`, ";")
	play := func(k int) string {
		s := newScene(t)
		var shown strings.Builder
		for _, line := range script {
			words := strings.Fields(line)
			if words[0] != "R" {
				cmd, cmdArgs, err := datadriven.ParseLine(strings.TrimSpace(line))
				if err != nil {
					t.Fatal(err)
				}
				s.run(t, &datadriven.TestData{Cmd: cmd, CmdArgs: cmdArgs})
				continue
			}
			if k > 0 {
				s.fail = k
				s.reconcile()
				s.fail = 0
				s.restart()
			}
			if out := s.reconcile(); strings.Contains(out, "error:") {
				t.Errorf("k=%d: %s", k, out)
			}
			for line := range strings.Lines(s.show()) {
				if !strings.HasPrefix(line, "  ") { // a condition may lag behind by some seconds
					shown.WriteString(line)
				}
			}
			shown.WriteString("\n")
		}
		return shown.String()
	}
	want := play(0)
	for k := 1; k <= 7; k++ {
		got, want := strings.Split(play(k), "\n"), strings.Split(want, "\n")
		for i := range want {
			if i >= len(got) || got[i] != want[i] {
				t.Errorf("killed at write %d of each reconciliation, line %d:\n%s\nwant\n%s", k, i, strings.Join(got[i:], "\n"), want[i])
				break
			}
		}
	}
}
