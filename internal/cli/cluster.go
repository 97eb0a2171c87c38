// Package cli is what the commands for people do: look into a cluster and at replicas, and say what they see. It reads
// only.
package cli

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// Cluster is where names are looked up.
type Cluster struct {
	Client    client.Client
	Namespace string
}

// Place is where a replica can be read.
type Place struct {
	Addr string // host:port of its pool's replica server
	Name string
}

func (p Place) String() string { return p.Addr + "/" + p.Name }

// ParsePlace reads HOST:PORT/NAME. ok is false when s is not of that form, so that it can only be a name.
func ParsePlace(s string) (p Place, ok bool) {
	addr, name, ok := strings.Cut(s, "/")
	if _, _, err := net.SplitHostPort(addr); !ok || err != nil || name == "" {
		return Place{}, false
	}
	return Place{Addr: addr, Name: name}, true
}

// Find looks up where the CStorVolumeReplica of that name is.
func (c Cluster) Find(ctx context.Context, name string) (Place, error) {
	cr := &cstorv1.CStorVolumeReplica{}
	if err := c.Client.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: name}, cr); err != nil {
		return Place{}, fmt.Errorf("replica %s: %w", name, err)
	}
	pods := &corev1.PodList{}
	labels := client.MatchingLabels{cstorv1.LabelPoolInstance: cr.PoolOf()}
	if err := c.Client.List(ctx, pods, client.InNamespace(c.Namespace), labels); err != nil {
		return Place{}, fmt.Errorf("replica %s: pods of pool %s: %w", name, cr.PoolOf(), err)
	}
	for _, p := range pods.Items {
		if p.Status.Phase == corev1.PodRunning && p.Status.PodIP != "" && p.DeletionTimestamp == nil {
			return Place{Addr: net.JoinHostPort(p.Status.PodIP, strconv.Itoa(cstorv1.PortPull)), Name: name}, nil
		}
	}
	return Place{}, fmt.Errorf("replica %s: pool %s has no running pod", name, cr.PoolOf())
}
