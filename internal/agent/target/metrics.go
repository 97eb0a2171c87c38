package target

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cstor-go/cstor/internal/volume"
)

var (
	serving   = prometheus.NewDesc("cstor_volume_serving", "1 while I/O is possible.", nil, nil)
	epoch     = prometheus.NewDesc("cstor_volume_epoch", "Epoch in force.", nil, nil)
	lastOp    = prometheus.NewDesc("cstor_volume_last_operation", "Number of the last operation sequenced.", nil, nil)
	memberSum = prometheus.NewDesc("cstor_volume_members", "Replicas that count for quorum.", nil, nil)

	replicaLabels = []string{"replica", "guid"}
	replicaMode   = prometheus.NewDesc("cstor_volume_replica_healthy", "1 while the replica is in sync.", replicaLabels, nil)
	replicaOp     = prometheus.NewDesc("cstor_volume_replica_last_operation", "Number of the last operation acknowledged.", replicaLabels, nil)
)

// Describe implements prometheus.Collector.
func (a *Agent) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{serving, epoch, lastOp, memberSum, replicaMode, replicaOp} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (a *Agent) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	t := a.running.Load()
	if t == nil {
		gauge(serving, 0)
		return
	}
	st := (*t).Status()
	gauge(serving, number(st.Serving))
	gauge(epoch, float64(st.Epoch))
	gauge(lastOp, float64(st.Last))
	gauge(memberSum, float64(len(st.Committed.Members)))
	for _, r := range st.Replicas {
		gauge(replicaMode, number(r.Mode == volume.Healthy), r.Name, r.GUID.String())
		gauge(replicaOp, float64(r.Applied), r.Name, r.GUID.String())
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
