package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// VolumeStatus prints what is to know about a volume: its state, its replicas, and what a change that is under way waits
// for. ok is whether all of its members are healthy.
func (c Cluster) VolumeStatus(ctx context.Context, w io.Writer, name string) (ok bool, err error) {
	cv := &cstorv1.CStorVolume{}
	if err := c.Client.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: name}, cv); err != nil {
		return false, fmt.Errorf("volume %s: %w", name, err)
	}
	list := &cstorv1.CStorVolumeReplicaList{}
	labels := client.MatchingLabels{cstorv1.LabelPV: name}
	if err := c.Client.List(ctx, list, client.InNamespace(c.Namespace), labels); err != nil {
		return false, fmt.Errorf("volume %s: replicas: %w", name, err)
	}
	slices.SortFunc(list.Items, func(a, b cstorv1.CStorVolumeReplica) int { return strings.Compare(a.Name, b.Name) })
	fmt.Fprintf(w, "Volume:    %s\n", name)
	fmt.Fprintf(w, "Size:      %s\n", cv.Spec.Capacity.String())
	fmt.Fprintf(w, "Portal:    %s, %s\n", cv.Spec.TargetPortal, cv.Spec.Iqn)
	fmt.Fprintf(w, "State:     %s\n", cmp.Or(string(cv.Status.Phase), "not reported yet"))
	if cv.Status.Message != "" {
		fmt.Fprintf(w, "           %s\n", cv.Status.Message)
	}
	fmt.Fprintf(w, "Replicas:  %d members, %d of them must hold every write; up to %d may connect\n\n",
		cv.Spec.ReplicationFactor, cv.Spec.ConsistencyFactor, cv.Spec.DesiredReplicationFactor)

	ok = cv.Status.Phase == cstorv1.VolumeHealthy
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "REPLICA\tPOOL\tMEMBER\tSTATUS\tUSED\tALLOCATED\tPROGRESS\tRATE\tETA")
	for _, r := range list.Items {
		member := "no"
		_, named := cv.Status.ReplicaDetails.KnownReplicas[r.Spec.ReplicaID]
		if _, known := cv.Status.ReplicaDetails.KnownReplicas[r.Status.GUID]; named || known {
			member = "yes"
			ok = ok && r.Status.Phase == cstorv1.ReplicaHealthy
		}
		p := r.Status.Progress
		if p == nil {
			p = &cstorv1.RebuildProgress{}
		}
		fmt.Fprintln(t, strings.Join([]string{
			r.Name, r.PoolOf(), member, dash(string(r.Status.Phase)), dash(r.Status.Capacity.Used), dash(r.Status.Capacity.Total),
			dash(p.Done), dash(p.Rate), dash(p.ETA),
		}, "\t"))
	}
	if err := t.Flush(); err != nil {
		return ok, err
	}
	if err := c.changes(ctx, w, name); err != nil {
		return false, fmt.Errorf("volume %s: %w", name, err)
	}
	for _, r := range list.Items {
		waiting := r.Status.Message
		if p := r.Status.Progress; p != nil && p.WaitingFor != "" {
			waiting = "waits for " + p.WaitingFor
		}
		if waiting != "" {
			fmt.Fprintf(w, "\n%s: %s\n", r.Name, waiting)
		}
	}
	return ok, nil
}

// changes prints what the volume's configuration waits for, or why an edit of it is not carried out.
func (c Cluster) changes(ctx context.Context, w io.Writer, name string) error {
	config := &cstorv1.CStorVolumeConfig{}
	if err := c.Client.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: name}, config); err != nil {
		return client.IgnoreNotFound(err)
	}
	for _, k := range config.Status.Conditions {
		fmt.Fprintf(w, "\n%s, %s: %s\n", k.Type, k.Reason, k.Message)
	}
	return nil
}

func dash(s string) string { return cmp.Or(s, "-") }
