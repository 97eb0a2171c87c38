package volumes

import (
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// TestPolicyIsFollowed edits what the policy of a volume that exists says about its target's work.
func TestPolicyIsFollowed(t *testing.T) {
	s := newScene(t)
	for line := range strings.SplitSeq("pool a;pool b;new replicas=2;reconcile", ";") {
		cmd, args, err := datadriven.ParseLine(line)
		if err != nil {
			t.Fatal(err)
		}
		s.run(t, &datadriven.TestData{Cmd: cmd, CmdArgs: args})
	}
	for _, want := range []cstorv1.TargetSpec{
		{Witness: cstorv1.WitnessDisabled}, {RebuildBandwidth: "100M"}, {Witness: cstorv1.WitnessEnabled, RebuildBandwidth: "50M"}, {},
	} {
		c := s.config()
		c.Spec.Policy.Target = want
		s.update(c)
		s.reconcile()
		if v := s.volume(); v.Spec.Witness != want.Witness || v.Spec.RebuildBandwidth != want.RebuildBandwidth {
			t.Errorf("witness %q, rebuildBandwidth %q, want %+v", v.Spec.Witness, v.Spec.RebuildBandwidth, want)
		}
	}
}
