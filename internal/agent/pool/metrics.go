package pool

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

var (
	poolCapacity  = prometheus.NewDesc("cstor_pool_capacity_bytes", "Size of the pool.", nil, nil)
	poolAllocated = prometheus.NewDesc("cstor_pool_allocated_bytes", "Live data and live metadata.", nil, nil)
	poolFree      = prometheus.NewDesc("cstor_pool_free_bytes", "Space that can be written.", nil, nil)
	poolUp        = prometheus.NewDesc("cstor_pool_online", "1 while the pool is open and takes writes.", nil, nil)
	poolReadOnly  = prometheus.NewDesc("cstor_pool_read_only", "1 while the pool is too full for writes.", nil, nil)
	poolChecksums = prometheus.NewDesc("cstor_pool_checksum_errors_total", "Reads that found damaged data.", nil, nil)

	poolState = prometheus.NewDesc("cstor_pool_state", "1 for the state that the pool is in: ONLINE, DEGRADED, FAULTED.", []string{"state"}, nil)

	deviceLabels = []string{"blockdevice", "guid", "device"}
	deviceState  = prometheus.NewDesc("cstor_pool_device_state", "1 for the state that the device is in.", append(slices.Clone(deviceLabels), "state"), nil)
	deviceErrors = prometheus.NewDesc("cstor_pool_device_errors_total", "Operations of the device that failed, by kind: read, write, checksum.",
		append(slices.Clone(deviceLabels), "kind"), nil)
	deviceBehind = prometheus.NewDesc("cstor_pool_device_resilver_bytes", "Bytes that the device lacks.", deviceLabels, nil)

	activityLabels   = []string{"activity"} // scrub, resilver
	activityDone     = prometheus.NewDesc("cstor_pool_activity_done_bytes", "Bytes that the scrub or resilver has been through.", activityLabels, nil)
	activityTotal    = prometheus.NewDesc("cstor_pool_activity_total_bytes", "Bytes that it goes through in all.", activityLabels, nil)
	activityRate     = prometheus.NewDesc("cstor_pool_activity_bytes_per_second", "Its speed.", activityLabels, nil)
	activityRepaired = prometheus.NewDesc("cstor_pool_activity_repaired", "What it repaired.", activityLabels, nil)
	activityErrors   = prometheus.NewDesc("cstor_pool_activity_errors", "What it found damaged and could not repair.", activityLabels, nil)

	replicaLabels    = []string{"replica"}
	replicaConnected = prometheus.NewDesc("cstor_replica_connected", "1 while the replica has a session with its target.", replicaLabels, nil)
	replicaInSync    = prometheus.NewDesc("cstor_replica_in_sync", "1 while the replica is complete, in sync and a member.", replicaLabels, nil)
	replicaUsed      = prometheus.NewDesc("cstor_replica_used_bytes", "Data of the volume on the replica.", replicaLabels, nil)
	replicaAllocated = prometheus.NewDesc("cstor_replica_allocated_bytes", "Space that the replica takes on the pool.", replicaLabels, nil)
	rebuildDone      = prometheus.NewDesc("cstor_replica_rebuild_done_bytes", "Bytes copied by the rebuild under way.", replicaLabels, nil)
	rebuildTotal     = prometheus.NewDesc("cstor_replica_rebuild_total_bytes", "Bytes that the rebuild under way has to copy.", replicaLabels, nil)
	rebuildRate      = prometheus.NewDesc("cstor_replica_rebuild_bytes_per_second", "Speed of the rebuild under way in the last seconds.", replicaLabels, nil)
	rebuildLeft      = prometheus.NewDesc("cstor_replica_rebuild_left_seconds", "What it takes to end at that speed.", replicaLabels, nil)
	rebuildWaits     = prometheus.NewDesc("cstor_replica_rebuild_waits", "1 for what holds the rebuild under way up.", append(slices.Clone(replicaLabels), "for"), nil)
)

// Describe implements prometheus.Collector.
func (a *Agent) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		poolCapacity, poolAllocated, poolFree, poolUp, poolReadOnly, poolChecksums, poolState, deviceState, deviceErrors, deviceBehind,
		activityDone, activityTotal, activityRate, activityRepaired, activityErrors, replicaConnected, replicaInSync,
		replicaUsed, replicaAllocated, rebuildDone, rebuildTotal, rebuildRate, rebuildLeft, rebuildWaits,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (a *Agent) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	eng, replicas := a.open()
	if eng == nil {
		gauge(poolUp, 0)
		return
	}
	st := eng.Stats()
	gauge(poolUp, number(poolPhase(st.Health) != cstorv1.PoolFaulted))
	gauge(poolCapacity, float64(st.Capacity))
	gauge(poolAllocated, float64(st.Allocated))
	gauge(poolFree, float64(st.Free))
	gauge(poolReadOnly, number(st.ReadOnly))
	ch <- prometheus.MustNewConstMetric(poolChecksums, prometheus.CounterValue, float64(st.ChecksumErrors))
	for _, state := range []cstorv1.PoolPhase{cstorv1.PoolOnline, cstorv1.PoolDegraded, cstorv1.PoolFaulted} {
		gauge(poolState, number(poolPhase(st.Health) == state), string(state))
	}
	a.mu.Lock()
	names := a.names
	a.mu.Unlock()
	for _, d := range eng.Devices() {
		labels := []string{names[d.GUID], d.GUID.String(), d.Name}
		with := func(l string) []string { return append(slices.Clone(labels), l) }
		gauge(deviceState, 1, with(d.State)...)
		for kind, n := range map[string]uint64{"read": d.ReadErrors, "write": d.WriteErrors, "checksum": d.ChecksumErrors} {
			ch <- prometheus.MustNewConstMetric(deviceErrors, prometheus.CounterValue, float64(n), with(kind)...)
		}
		gauge(deviceBehind, float64(d.ToResilver), labels...)
	}
	activity := eng.Activity()
	for name, p := range map[string]Progress{"scrub": activity.Scrub, "resilver": activity.Resilver} {
		gauge(activityDone, float64(p.Done), name)
		gauge(activityTotal, float64(p.Total), name)
		gauge(activityRate, float64(p.Rate), name)
		gauge(activityRepaired, float64(p.Repaired), name)
		gauge(activityErrors, float64(p.Errors), name)
	}
	for _, s := range replicas.Status() {
		gauge(replicaConnected, number(s.Connected), s.Name)
		gauge(replicaInSync, number(s.Connected && s.Complete && s.InSync && s.Member), s.Name)
		gauge(replicaUsed, float64(s.Used), s.Name)
		gauge(replicaAllocated, float64(s.Allocated), s.Name)
		if s.Rebuilding {
			p := cstorv1.NewRebuildProgress(int64(s.Progress.Done), int64(s.Progress.Total), int64(s.Progress.BytesPerSec), s.Progress.WaitingFor)
			gauge(rebuildDone, float64(p.BytesDone), s.Name)
			gauge(rebuildTotal, float64(p.BytesTotal), s.Name)
			gauge(rebuildRate, float64(p.BytesPerSecond), s.Name)
			if p.SecondsLeft != nil {
				gauge(rebuildLeft, float64(*p.SecondsLeft), s.Name)
			}
			if p.WaitingFor != "" {
				gauge(rebuildWaits, 1, s.Name, p.WaitingFor)
			}
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
