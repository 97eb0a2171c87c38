package pool

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetricsOfDevices(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.disks.pool.stats.Health = "DEGRADED"
	b := w.disks.pool.device("/dev/b")
	b.State, b.WriteErrors, b.ToResilver = stateFaulted, 3, 4096
	w.disks.pool.resilver = Progress{Done: 1, Total: 2, Rate: 3, Repaired: 4, Errors: 5}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(w.agent)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
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
