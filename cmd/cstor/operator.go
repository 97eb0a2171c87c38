package main

import (
	"context"
	"log/slog"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/operator"
)

type operatorFlags struct {
	namespace, image, listen string
	leaderElect              bool
}

func operatorCommand() *cobra.Command {
	var f operatorFlags
	cmd := &cobra.Command{
		Use:   "operator --namespace=NAMESPACE --image=IMAGE",
		Short: "Run the controllers: pools, volumes, scaling",
		Long: `Runs the controllers of the cStor resources in one namespace: CStorPoolCluster to pools, CStorVolumeConfig to volumes,
their scaling and migration, and the deletion of everything in the right order. It never touches data: pools and
targets go on without it.

Needs: the API server (KUBECONFIG or a service account). With --leader-elect several may run, one of them works.`,
		Example: `  cstor operator --namespace=openebs --image=cstor:dev --leader-elect`,
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required("namespace", f.namespace, "image", f.image); err != nil {
				return err
			}
			return runOperator(cmd.Context(), f)
		},
	}
	cmd.Flags().StringVar(&f.namespace, "namespace", "", "namespace of the cStor resources")
	cmd.Flags().StringVar(&f.image, "image", "", "image of the pods that it creates")
	cmd.Flags().BoolVar(&f.leaderElect, "leader-elect", false, "work only while holding the operators' Lease")
	cmd.Flags().StringVar(&f.listen, "listen", "", "address of this pod to serve /healthz, /readyz and /metrics on, port 9500; empty: none")
	return cmd
}

func runOperator(ctx context.Context, f operatorFlags) error {
	cfg, err := kube.Config("cstor-operator/" + version)
	if err != nil {
		return err
	}
	o := operator.Options{
		Namespace: f.namespace, Image: f.image, KubeConfig: cfg, LeaderElect: f.leaderElect, Log: slog.Default(),
	}
	if f.listen != "" {
		o.MetricsAddr = net.JoinHostPort(f.listen, strconv.Itoa(cstorv1.PortMetrics))
	}
	return operator.Run(ctx, o)
}
