package walkthrough

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
)

// startCluster is step 1.
func (w *walk) startCluster(ctx context.Context) (err error) {
	w.Screen.Say("etcd, kube-apiserver, kube-controller-manager and kube-scheduler start as local processes.")
	w.lab, err = lab.Start(ctx, lab.Options{Root: w.Root, Dir: w.Dir, Raid: w.Raid, Detach: w.Keep, Progress: w.Screen})
	if err != nil {
		return err
	}
	w.guard(ctx, w.lab.Ended(), func() error { return fmt.Errorf("the cluster has ended by itself") })
	w.Screen.Note("")
	return w.show(ctx, "get", "nodes")
}

// install is step 2.
func (w *walk) install(ctx context.Context) error {
	out, err := w.lab.Install(ctx)
	if err != nil {
		return err
	}
	w.Screen.Command("kubectl apply -k "+lab.DeployDir, out)
	if err := w.lab.WaitOperator(ctx); err != nil {
		return err
	}
	return w.show(ctx, inNamespace("get", "pods")...)
}

// createPools is step 3.
func (w *walk) createPools(ctx context.Context) error {
	pools, err := w.lab.PoolCluster()
	if err != nil {
		return err
	}
	w.cluster = pools.Name
	disks := "a sparse file of 10 GiB and a BlockDevice that describes it"
	if n := len(pools.Spec.Pools[0].DataRaidGroups[0].BlockDevices); n > 1 {
		disks = fmt.Sprintf("%d sparse files of 10 GiB and BlockDevices that describe them", n)
	}
	w.Screen.Say("Each node gets %s.\n", disks)
	if err := w.lab.AddDisks(ctx); err != nil {
		return err
	}
	if err := w.show(ctx, inNamespace("get", "bd")...); err != nil {
		return err
	}
	out, err := w.lab.Kubectl(ctx, "apply", "-f", w.lab.RootPath(w.lab.PoolsFile()))
	if err != nil {
		return err
	}
	w.Screen.Command("kubectl apply -f "+w.lab.PoolsFile(), out)
	if err := w.lab.WaitPools(ctx, w.cluster); err != nil {
		return err
	}
	if err := w.show(ctx, inNamespace("get", "cspc")...); err != nil {
		return err
	}
	return w.rememberPools(ctx)
}

// rememberPools notes names, hosts and space of the new pools, and shows them.
func (w *walk) rememberPools(ctx context.Context) error {
	pools, err := w.lab.Pools(ctx, w.cluster)
	if err != nil {
		return err
	}
	for _, p := range pools {
		w.Screen.Transcript.Name(p.Name, w.cluster+"-<"+p.Spec.HostName+">")
		w.hosts[p.Name] = p.Spec.HostName
		w.fresh[p.Name] = cstorv1.PoolBytes(p.Status.Capacity.Used)
	}
	if err := w.show(ctx, inNamespace("get", "cspi")...); err != nil {
		return err
	}
	return w.show(ctx, inNamespace("get", "pods", "-l", "app="+cstorv1.AppPool, "-o", "wide")...)
}

// createVolume is step 4.
func (w *walk) createVolume(ctx context.Context) error {
	name, manifest, err := w.lab.NewVolume()
	if err != nil {
		return err
	}
	w.volume = name
	w.Screen.Transcript.Name(name, "pvc-<uuid>")
	const file = "cvc.yaml"
	path := filepath.Join(w.lab.Dir(), file)
	if err := os.WriteFile(path, []byte(manifest), 0o644); err != nil {
		return fmt.Errorf("writing the volume's manifest: %w", err)
	}
	w.Screen.Say("This is the CStorVolumeConfig that the CSI driver makes of a PersistentVolumeClaim:\n")
	w.Screen.Input(manifest)
	w.Screen.Say("")
	out, err := w.lab.Kubectl(ctx, "create", "-f", path)
	if err != nil {
		return err
	}
	w.Screen.Command("kubectl create -f "+file, out)
	w.facts = watchFacts(ctx, w.lab, name, w.hosts)
	if err := w.lab.WaitBound(ctx, name); err != nil {
		return err
	}
	if err := w.show(ctx, inNamespace("get", "cvc")...); err != nil {
		return err
	}
	if _, err := w.showFrom(ctx, "spec:", inNamespace("get", "cvc", name, "-o", "yaml")...); err != nil {
		return err
	}
	return w.show(ctx, inNamespace("get", "cvr")...)
}
