package pool

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/replica"
)

func TestMetricsOfDevices(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.disks.pool.stats.Health = "DEGRADED"
	b := w.disks.pool.device("/dev/b")
	b.State, b.WriteErrors, b.ToResilver = stateFaulted, 3, 4096
	w.disks.pool.resilver = Progress{Done: 1, Total: 2, Rate: 3, Repaired: 4, Errors: 5}
	got := metrics(t, w)
	for _, want := range []string{
		"cstor_pool_state DEGRADED 1", "cstor_pool_state ONLINE 0",
		"cstor_pool_device_state a /dev/a ONLINE 1", "cstor_pool_device_state b /dev/b FAULTED 1",
		"cstor_pool_device_errors_total b /dev/b write 3", "cstor_pool_device_errors_total a /dev/a write 0",
		"cstor_pool_device_resilver_bytes b /dev/b 4096",
		"cstor_pool_activity_done_bytes resilver 1", "cstor_pool_activity_total_bytes resilver 2",
		"cstor_pool_activity_bytes_per_second resilver 3", "cstor_pool_activity_repaired resilver 4",
		"cstor_pool_activity_errors resilver 5", "cstor_pool_activity_total_bytes scrub 0",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, strings.Join(got, "\n"))
		}
	}
}

// metrics returns what the agent tells: names, values of labels, values.
func metrics(t *testing.T, w *world) (got []string) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(w.agent)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				if l.GetName() != "guid" {
					labels = append(labels, l.GetValue())
				}
			}
			got = append(got, fmt.Sprint(f.GetName(), " ", strings.Join(labels, " "), " ", m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	return got
}

func TestMetricsOfARebuild(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaRecreate)
	w.pass()
	w.phases(connected, rebuilding)
	w.set(func(s *replica.Status) { s.Progress.WaitingFor = "the application" })
	name := w.replica().Name
	got := metrics(t, w)
	for _, want := range []string{
		"cstor_replica_rebuild_done_bytes " + name + " 5.36870912e+08", "cstor_replica_rebuild_total_bytes " + name + " 1.073741824e+09",
		"cstor_replica_rebuild_bytes_per_second " + name + " 2.68435456e+08", "cstor_replica_rebuild_left_seconds " + name + " 2",
		"cstor_replica_rebuild_waits the application " + name + " 1",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, strings.Join(got, "\n"))
		}
	}
}
