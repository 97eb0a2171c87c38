package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	firstMembers  = "list: {epoch: 0, generation: 1, members: ['00000000000000000000000000000001', '00000000000000000000000000000002']}\n"
	laterMembers  = "list: {epoch: 7, generation: 3, members: ['00000000000000000000000000000001']}\n"
	earlyMembers  = "list: {epoch: 0, generation: 0, members: ['00000000000000000000000000000001']}\n"
	onlyTheFirst  = "set: ['00000000000000000000000000000001']\n"
	ofTheFirst    = "cfg: {epoch: 0, generation: 1}\n"
	claimedBySix  = "epoch: 6\nnonce: '00000000000000aa'\n"
	claimedBySix2 = "epoch: 6\nnonce: '00000000000000bb'\n"
	claimedBy7    = "epoch: 7\nnonce: '00000000000000bb'\n"
	claims        = "claims: [{version: 4, epoch: 7, nonce: '00000000000000bb'}]\n"
)

// TestVolumeRecordPolicy writes CStorVolumeRecords under deploy/admission.yaml: as the volume's target, and as others.
func TestVolumeRecordPolicy(t *testing.T) {
	c := startCluster(t, "n1")
	deploy, err := filepath.Abs("../../deploy")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"namespace.yaml", "crds/cstor.openebs.io_cstorvolumerecords.yaml", "rbac.yaml", "admission.yaml"} {
		c.run("kubectl", "apply", "-f", filepath.Join(deploy, f))
	}
	c.run("kubectl", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")

	const target, pod = "system:serviceaccount:openebs:cstor-target", "pvc-1-target-5d9c7b-x2x4z"
	revision := func() string {
		return c.get("cstorvolumerecords.cstor.openebs.io/pvc-1", "{.metadata.resourceVersion}")
	}
	// put creates or replaces the record of pvc-1 and returns what kubectl says when that is refused.
	put := func(user, pod, content string, flags ...string) string {
		t.Helper()
		verb, meta := "create", "metadata: {name: pvc-1, namespace: openebs}\n"
		if v := revision(); v != "" {
			verb, meta = "replace", "metadata: {name: pvc-1, namespace: openebs, resourceVersion: \""+v+"\"}\n"
		}
		args := append([]string{"kubectl", verb, "-f", "-"}, flags...)
		if user != "" {
			args = append(args, "--as", user, "--as-user-extra", "authentication.kubernetes.io/pod-name="+pod)
		}
		cmd := exec.Command(c.bin, args...)
		cmd.Env = c.env(filepath.Join(c.dir, "kubeconfig"))
		cmd.Stdin = strings.NewReader("apiVersion: cstor.openebs.io/v1\nkind: CStorVolumeRecord\n" + meta + content)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return string(out)
		}
		return ""
	}
	c.run("kubectl", "config", "set-context", "--current", "--namespace=openebs")
	c.eventually("the policy to be in force", func() bool {
		return strings.Contains(put("", "", "version: 1\n", "--dry-run=server"), "only the volume's own target")
	})
	for _, s := range []struct {
		what, user, pod, content, refusal string
	}{
		{"another ServiceAccount", "system:serviceaccount:openebs:cstor-operator", pod, "version: 1\n", "cannot create"},
		{"an administrator", "", "", "version: 1\n", "only the volume's own target"},
		{"another volume's target", target, "pvc-10-target-5d9c7b-x2x4z", "version: 1\n" + firstMembers, "only the volume's own target"},
		{"a token of no pod", target, "", "version: 1\n" + firstMembers, "only the volume's own target"},
		{"made with a set", target, pod, "version: 1\n" + claimedBySix + onlyTheFirst + ofTheFirst, "set and cfg are changed only"},
		{"made with a version from nowhere", target, pod, "version: 2\n" + firstMembers, "version must be one more"},
		{"an epoch without a nonce", target, pod, "version: 1\nepoch: 6\n", "an epoch goes with a nonce"},
		{"founding", target, pod, "version: 1\n" + firstMembers, ""},
		{"founding again", target, pod, "version: 2\n" + laterMembers, "the list is written once"},
		{"a set without a claim", target, pod, "version: 2\n" + firstMembers + onlyTheFirst + ofTheFirst, "set and cfg are changed only"},
		{"a claim that changes more", target, pod, "version: 2\n" + claimedBySix + firstMembers + onlyTheFirst + ofTheFirst, "set and cfg are changed only"},
		{"a claim that drops the list", target, pod, "version: 2\n" + claimedBySix, "the list is written once"},
		{"a claim that skips a version", target, pod, "version: 3\n" + claimedBySix + firstMembers, "version must be one more"},
		{"the claim", target, pod, "version: 2\n" + claimedBySix + firstMembers, ""},
		{"the same version again", target, pod, "version: 2\n" + claimedBySix + firstMembers + onlyTheFirst + ofTheFirst, "version must be one more"},
		{"the set", target, pod, "version: 3\n" + claimedBySix + firstMembers + onlyTheFirst + ofTheFirst, ""},
		{"the same epoch of another target", target, pod, "version: 4\n" + claimedBySix2 + firstMembers + onlyTheFirst + ofTheFirst, "another target has claimed"},
		{"another target's claim that clears the set", target, pod, "version: 4\n" + claimedBy7 + firstMembers, "set and cfg are changed only"},
		{"a claim that nobody made", target, pod, "version: 4\n" + claimedBySix + firstMembers + onlyTheFirst + ofTheFirst + claims, "claims are changed only"},
		{"another target's claim", target, pod, "version: 4\n" + claimedBy7 + firstMembers + onlyTheFirst + ofTheFirst + claims, ""},
		{"what the first target has under way", target, pod, "version: 5\n" + claimedBySix + firstMembers, "another target has claimed"},
		{"a list of the past", target, pod, "version: 5\n" + claimedBy7 + earlyMembers + onlyTheFirst + ofTheFirst + claims, "the list is written once"},
		{"a claim that is forgotten", target, pod, "version: 5\n" + claimedBy7 + firstMembers + onlyTheFirst + ofTheFirst, "claims are changed only"},
		{"a later list", target, pod, "version: 5\n" + claimedBy7 + laterMembers + onlyTheFirst + "cfg: {epoch: 7, generation: 3}\n" + claims, ""},
		{"clearing, above a version that a replica has noted", target, pod, "version: 60\n" + claimedBy7 + laterMembers + claims, ""},
		{"what is no GUID", target, pod, "version: 61\n" + claimedBy7 + laterMembers + claims + "set: [x]\n", "set[0]"},
	} {
		before := revision()
		said := put(s.user, s.pod, s.content)
		switch {
		case s.refusal == "" && said != "":
			t.Fatalf("%s: refused: %s", s.what, said)
		case s.refusal != "" && !strings.Contains(said, s.refusal):
			t.Errorf("%s: %q, wanted a refusal with %q", s.what, said, s.refusal)
		case s.refusal != "" && revision() != before:
			t.Errorf("%s: it was written all the same", s.what)
		}
	}
	if out, err := c.try("kubectl", "label", "cstorvolumerecords.cstor.openebs.io/pvc-1", "x=y"); err != nil {
		t.Errorf("labels are anybody's: %s", out)
	}
	if out, err := c.try("kubectl", "delete", "cstorvolumerecords.cstor.openebs.io/pvc-1"); err == nil || !strings.Contains(out, "goes with its CStorVolumeConfig") {
		t.Errorf("deleted by hand: %v %s", err, out)
	}
	c.run("kubectl", "delete", "namespace", "openebs")
	if got := c.get("cstorvolumerecords.cstor.openebs.io/pvc-1", "{.metadata.name}"); got != "" {
		t.Errorf("it outlives its namespace: %s", got)
	}
}
