package transcript

import (
	"strings"
	"testing"
)

const pools = `NAME               HOSTNAME     ALLOCATED   FREE    CAPACITY   READONLY   TYPE     STATUS   AGE
cstor-stripe-psz5  e2e1-node1   230k        9630M   9630M      false      stripe   ONLINE   3m
cstor-stripe-6qkw  e2e1-node2   1260M       8370M   9630M      false      stripe            3m12s
`

func TestTable(t *testing.T) {
	tr := &Transcript{}
	tr.Name("cstor-stripe-psz5", "cstor-stripe-<1>")
	tr.Name("cstor-stripe-6qkw", "cstor-stripe-<2>")
	tr.Command("kubectl get cspi cstor-stripe-6qkw", pools)
	want := `$ kubectl get cspi cstor-stripe-<2>
NAME               HOSTNAME     ALLOCATED   FREE     CAPACITY   READONLY   TYPE     STATUS   AGE
cstor-stripe-<1>   e2e1-node1   <size>      <size>   9630M      false      stripe   ONLINE   <age>
cstor-stripe-<2>   e2e1-node2   <size>      <size>   9630M      false      stripe            <age>
`
	if got := tr.String(); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func TestEvents(t *testing.T) {
	tr := &Transcript{}
	tr.Command("kubectl describe cvc", `Events:
  Type     Reason                 Age                From                         Message
  ----     ------                 ----               ----                         -------
  Warning  ScalingVolumeReplicas  4s (x2 over 64m)   cstorvolumeclaim-controller  Scaling down volume replicas from 3 to 2 is in progress
  Normal   ScalingVolumeReplicas  14s                cstorvolumeclaim-controller  successfully scaled volume replicas to 3
`)
	for _, want := range []string{
		"Normal    ScalingVolumeReplicas   <age>   cstorvolumeclaim-controller   successfully scaled volume replicas to 3\n",
		"Warning   ScalingVolumeReplicas   <age>   cstorvolumeclaim-controller   Scaling down volume replicas from 3 to 2 is in progress\n",
	} {
		if !strings.Contains(tr.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, tr)
		}
	}
}

func TestMasks(t *testing.T) {
	tr := &Transcript{}
	tr.Line(`pvc-1f2e3d4c-0000-1111-2222-333344445555 at 127.96.0.12:3260, pod cstor-operator-6c9d5b7f4-x2x9z, resourceVersion: "123"  `)
	if got, want := tr.String(), "pvc-<uuid> at <ip>:3260, pod cstor-operator-<pod>, resourceVersion: \"<n>\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDiff(t *testing.T) {
	if d := Diff("a\nb\n", "a\nb\n"); d != "" {
		t.Errorf("equal transcripts differ: %s", d)
	}
	if d := Diff("a\nb\n", "a\nc\n"); !strings.Contains(d, "-b\n") || !strings.Contains(d, "+c\n") {
		t.Errorf("diff is %q", d)
	}
}

// What a rebuild has not said yet in one run it may have said in another.
func TestRatesThatComeLate(t *testing.T) {
	tr := &Transcript{}
	tr.Command("kubectl get cvr", `NAME   STATUS                     AGE   PROGRESS   RATE     ETA   WAITING FOR
a      ReconstructingNewReplica   3m    6%         98M/s    15s   the application, whose requests go first
b      ReconstructingNewReplica   3m    0%                  
c      Healthy                    3m                        
`)
	want := `$ kubectl get cvr
NAME   STATUS                     AGE     PROGRESS   RATE   ETA   WAITING FOR
a      ReconstructingNewReplica   <age>   <n>        <n>    <n>   <n>
b      ReconstructingNewReplica   <age>   <n>        <n>    <n>   <n>
c      Healthy                    <age>
`
	if got := tr.String(); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}
