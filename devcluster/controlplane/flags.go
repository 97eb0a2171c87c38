package controlplane

import (
	"net/netip"
	"strconv"
)

func (c *ControlPlane) etcdURL() string {
	return "http://" + netip.AddrPortFrom(c.cfg.Address, uint16(c.etcdPort)).String()
}

func (c *ControlPlane) etcdArgs() []string {
	return []string{"--data-dir=" + c.path("etcd"), "--listen-client-url=" + c.etcdURL()}
}

func (c *ControlPlane) apiserverArgs() []string {
	p := c.pki.path
	return []string{
		"--etcd-servers=" + c.etcdURL(),
		"--bind-address=" + c.cfg.Address.String(),
		"--advertise-address=" + c.cfg.Address.String(),
		"--secure-port=" + strconv.Itoa(c.apiPort),
		"--tls-cert-file=" + p("apiserver.crt"),
		"--tls-private-key-file=" + p("apiserver.key"),
		"--client-ca-file=" + p("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + p("sa.pub"),
		"--service-account-signing-key-file=" + p("sa.key"),
		"--service-cluster-ip-range=" + c.cfg.Services.String(),
		"--authorization-mode=Node,RBAC",
		"--allow-privileged=true",
		"--kubelet-client-certificate=" + p("kubelet-client.crt"),
		"--kubelet-client-key=" + p("kubelet-client.key"),
		"--kubelet-certificate-authority=" + p("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		// The kubernetes Service's endpoint would be a loopback address, which the API server refuses.
		"--endpoint-reconciler-type=none",
		"--profiling=false",
	}
}

func (c *ControlPlane) controllerManagerArgs(port int) []string {
	kubeconfig := c.path("controller-manager.kubeconfig")
	p := c.pki.path
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=" + c.cfg.Address.String(),
		"--secure-port=" + strconv.Itoa(port),
		// Endpoints refuse loopback addresses; the process runtime forwards Services itself.
		"--controllers=*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller",
		"--service-account-private-key-file=" + p("sa.key"),
		"--root-ca-file=" + p("ca.crt"),
		"--cluster-signing-cert-file=" + p("ca.crt"),
		"--cluster-signing-key-file=" + p("ca.key"),
		"--use-service-account-credentials=true",
		"--leader-elect=false",
		"--kube-api-qps=300", "--kube-api-burst=400",
		"--node-monitor-grace-period=20s",
		"--node-monitor-period=2s",
		"--attach-detach-reconcile-sync-period=5s",
		"--pvclaimbinder-sync-period=5s",
		"--flex-volume-plugin-dir=" + c.path("flex"),
		"--profiling=false",
	}
}

func (c *ControlPlane) schedulerArgs(port int) []string {
	kubeconfig := c.path("scheduler.kubeconfig")
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=" + c.cfg.Address.String(),
		"--secure-port=" + strconv.Itoa(port),
		"--leader-elect=false",
		"--kube-api-qps=300", "--kube-api-burst=400",
		"--profiling=false",
	}
}
