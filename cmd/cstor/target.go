package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/rest"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/health"
	"github.com/cstor-go/cstor/internal/agent/kube"
	agent "github.com/cstor-go/cstor/internal/agent/target"
	"github.com/cstor-go/cstor/internal/iscsi"
	"github.com/cstor-go/cstor/internal/target"
)

const (
	// targetMemory is what a target's process keeps to: buffers of requests in flight, and room for garbage.
	targetMemory = 64 << 20
	// inFlight is the bytes of requests in progress before further ones wait.
	inFlight = 24 << 20
	// lastAnswers is how long requests in flight may take to be answered when the process has to end.
	lastAnswers = 5 * time.Second
)

type targetFlags struct {
	volume, namespace, listen string

	capacity, iqn, portal, uid, configUID string // what the API server would say
}

// told is the volume as the flags describe it, nil if they do not.
func (f *targetFlags) told() (*cstorv1.CStorVolume, error) {
	if f.capacity+f.iqn+f.portal+f.uid+f.configUID == "" {
		return nil, nil
	}
	if err := required("capacity", f.capacity, "iqn", f.iqn, "portal", f.portal, "uid", f.uid, "config-uid", f.configUID); err != nil {
		return nil, err
	}
	capacity, err := resource.ParseQuantity(f.capacity)
	if err != nil {
		return nil, fmt.Errorf("--capacity=%s: %w", f.capacity, err)
	}
	return agent.Told(f.namespace, f.volume, f.uid, f.configUID, capacity, f.iqn, f.portal), nil
}

func targetCommand() *cobra.Command {
	var f targetFlags
	cmd := &cobra.Command{
		Use:   "target --volume=NAME --namespace=NAMESPACE --listen=IP",
		Short: "Run the target of one volume: its replicas' write order, and iSCSI",
		Long: `Serves one volume (CStorVolume) over iSCSI. Its replicas dial in; once enough members of the volume have, they are
brought to the same state and the volume serves I/O. While there is no quorum I/O is held, not failed.

Needs: the API server (KUBECONFIG or a service account) to found the volume, to change its members and to show its state;
and to go on with fewer replicas than a quorum; I/O does not need it otherwise. Nor does a start, with --capacity, --iqn, --portal, --uid and --config-uid, which say what does not
change of the volume: it is served as its replicas know it until the API server answers. Takes the pod's name and node from
POD_NAME and NODE_NAME. Listens on port 3260 (iSCSI), 6060 (replicas) and 9500 (/healthz, /readyz, /metrics) of the
address given. Ends on SIGTERM, after commands in flight have been answered.`,
		Example: `  cstor target --volume=pvc-0c1d9a2e --namespace=openebs --listen=10.1.2.4`,
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required("volume", f.volume, "namespace", f.namespace, "listen", f.listen); err != nil {
				return err
			}
			told, err := f.told()
			if err != nil {
				return err
			}
			limitMemory(targetMemory)
			cfg, err := apiConfig("cstor-target")
			if err != nil {
				return err
			}
			return runTarget(cmd.Context(), cfg, f, told)
		},
	}
	cmd.Flags().StringVar(&f.volume, "volume", "", "name of the CStorVolume, which is the name of the PersistentVolume")
	cmd.Flags().StringVar(&f.namespace, "namespace", "", "namespace of the cStor resources")
	cmd.Flags().StringVar(&f.listen, "listen", "", "address of this pod, by which replicas and initiators reach it")
	cmd.Flags().StringVar(&f.capacity, "capacity", "", "spec.capacity of the CStorVolume")
	cmd.Flags().StringVar(&f.iqn, "iqn", "", "spec.iqn of the CStorVolume")
	cmd.Flags().StringVar(&f.portal, "portal", "", "spec.targetPortal of the CStorVolume")
	cmd.Flags().StringVar(&f.uid, "uid", "", "UID of the CStorVolume")
	cmd.Flags().StringVar(&f.configUID, "config-uid", "", "UID of the CStorVolumeConfig")
	return cmd
}

func runTarget(ctx context.Context, cfg *rest.Config, f targetFlags, told *cstorv1.CStorVolume) error {
	log := slog.Default()
	client, err := kube.NewClient(cfg)
	if err != nil {
		return err
	}
	recordClient, err := kube.NewClient(kube.Once(cfg))
	if err != nil {
		return err
	}
	healthPort, err := listen(f.listen, cstorv1.PortMetrics)
	if err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer fail(nil)
	start := func(what string, run func() error) {
		wg.Go(func() {
			if err := run(); err != nil {
				fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	a := agent.New(agent.Config{Client: client, Namespace: f.namespace, Volume: f.volume, Pod: podName(), Node: nodeName(), Log: log})
	var running atomic.Pointer[target.Target] // nil: its ports are not open
	start("health", func() error {
		return health.Serve(ctx, healthPort, func() error { return reachable(running.Load()) }, a)
	})
	log.Info("target process started", "version", version, "volume", f.volume)
	cv, err := a.Load(ctx, told)
	if err != nil {
		return ended(ctx, nil) // before there was a volume
	}

	replicaPort, err := listen(f.listen, cstorv1.PortReplica)
	if err != nil {
		return err
	}
	var frontend *iscsi.Server
	t := target.New(target.Config{
		Volume: cv.Name, Size: agent.Size(cv), ReplicaListen: replicaPort,
		Record: &agent.Witness{Record: &agent.Record{Client: recordClient, Owner: cv}}, Desired: agent.Desired(cv), Log: log,
		DropSessions: func() { frontend.Drop() },
	})
	defer t.Close()
	frontend, err = iscsi.NewServer(iscsi.Config{
		TargetName: cv.Spec.Iqn, Portal: cv.Spec.TargetPortal, Serial: string(cv.UID), Device: t, Log: log,
		MaxInFlight: inFlight, Ready: func() error { return serving(t) },
	})
	if err != nil {
		return err
	}
	iscsiPort, err := listen(f.listen, cstorv1.PortISCSI)
	if err != nil {
		return err
	}
	start("replicas", func() error { return t.Serve(context.WithoutCancel(ctx)) }) // until Close
	start("iscsi", func() error { return frontend.Serve(iscsiPort) })
	start("agent", func() error { a.Run(ctx, t); return nil })
	running.Store(t)

	<-ctx.Done()
	running.Store(nil)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastAnswers)
	defer cancel()
	if err := frontend.Shutdown(last); err != nil {
		log.Warn("some commands were not answered", "err", err)
	}
	return ended(ctx, nil)
}

// reachable returns nil while replicas and initiators shall be led here, or else why not. That does not mean that the volume
// serves: the replicas that it waits for would never come. But they shall find another target when there is one.
func reachable(t *target.Target) error {
	if t == nil {
		return errors.New("ports are not open")
	}
	if st := t.Status(); st.StoodDown {
		return errors.New(st.Holding)
	}
	return nil
}

// serving returns nil while the volume takes I/O, or else why it does not.
func serving(t *target.Target) error {
	st := t.Status()
	if st.Serving {
		return nil
	}
	if st.Holding == "" {
		return errors.New("volume is not ready")
	}
	return errors.New(st.Holding)
}
