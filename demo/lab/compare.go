package lab

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/replica"
)

// CompareReplicas reads a volume's replicas on two pools directly from the pools, bypassing the target, and compares
// every block's content and version. It returns what was compared, in words. Nothing may be writing.
func (l *Lab) CompareReplicas(ctx context.Context, volume, poolA, poolB string) (string, error) {
	a, err := l.pullAddress(ctx, poolA)
	if err != nil {
		return "", err
	}
	b, err := l.pullAddress(ctx, poolB)
	if err != nil {
		return "", err
	}
	begin := time.Now()
	c, err := replica.Compare(ctx, a, cstorv1.ReplicaName(volume, poolA), b, cstorv1.ReplicaName(volume, poolB))
	if err != nil {
		return "", fmt.Errorf("comparing the replicas on %s and %s: %w", poolA, poolB, err)
	}
	return fmt.Sprintf("%d blocks (%s) equal by content and version, both at version %s, in %.1f s",
		c.Blocks, cstorv1.FormatSize(int64(c.Blocks)*block.Size), c.At, time.Since(begin).Seconds()), nil
}

// pullAddress is where a pool's process serves replicas to other pools. A pod that has just come back to life may not be
// shown as ready yet, which is waited for.
func (l *Lab) pullAddress(ctx context.Context, pool string) (address string, err error) {
	err = Until(ctx, time.Minute, "pool "+pool+" to have a pod that is ready", func(ctx context.Context) (bool, string, error) {
		pods := &corev1.PodList{}
		if err := l.Client.List(ctx, pods, client.InNamespace(Namespace), client.MatchingLabels{cstorv1.LabelPoolInstance: pool}); err != nil {
			return false, err.Error(), nil
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; podReady(p) {
				address = net.JoinHostPort(p.Status.PodIP, strconv.Itoa(cstorv1.PortPull))
				return true, "", nil
			}
		}
		return false, fmt.Sprintf("%d pods, none of them ready", len(pods.Items)), nil
	})
	return address, err
}
