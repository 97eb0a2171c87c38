package noderuntime

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// tokenLife is how long a ServiceAccount token is valid; it is replaced when four fifths of that have passed.
const tokenLife = time.Hour

// credentials are a pod's ServiceAccount tokens, and the kubeconfig that its processes find through KUBECONFIG.
type credentials struct {
	pod *pod
	dir string

	mu     sync.Mutex
	tokens map[string]issuedToken // by audience and life
}

type issuedToken struct {
	token   string
	renewAt time.Time
}

func newCredentials(p *pod) *credentials {
	return &credentials{pod: p, dir: filepath.Join(p.dir, "api"), tokens: map[string]issuedToken{}}
}

func (c *credentials) kubeconfigPath() string { return filepath.Join(c.dir, "kubeconfig") }

// write makes kubeconfig and token, or brings the token up to date.
func (c *credentials) write(ctx context.Context) error {
	life := int64(tokenLife / time.Second)
	token, err := c.token(ctx, &v1.ServiceAccountTokenProjection{ExpirationSeconds: &life})
	if err != nil {
		return err
	}
	k := clientcmdapi.NewConfig()
	k.Clusters["devcluster"] = &clientcmdapi.Cluster{
		Server:                   "https://" + c.pod.rt.cfg.APIServer.String(),
		CertificateAuthorityData: c.pod.rt.cfg.CA,
	}
	k.AuthInfos["pod"] = &clientcmdapi.AuthInfo{TokenFile: filepath.Join(c.dir, "token")}
	k.Contexts["pod"] = &clientcmdapi.Context{Cluster: "devcluster", AuthInfo: "pod", Namespace: c.pod.namespace}
	k.CurrentContext = "pod"
	kubeconfig, err := clientcmd.Write(*k)
	if err != nil {
		return fmt.Errorf("encoding kubeconfig: %w", err)
	}
	return writeFiles(c.dir, map[string]string{"token": token, "kubeconfig": string(kubeconfig)})
}

// token returns a valid token of the pod's ServiceAccount.
func (c *credentials) token(ctx context.Context, want *v1.ServiceAccountTokenProjection) (string, error) {
	life := int64(tokenLife / time.Second)
	if want.ExpirationSeconds != nil {
		life = *want.ExpirationSeconds
	}
	key := fmt.Sprintf("%s/%d", want.Audience, life)
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.tokens[key]; ok && time.Now().Before(t.renewAt) {
		return t.token, nil
	}
	p := c.pod
	account := p.object().Spec.ServiceAccountName
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &life,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.name, UID: p.uid},
	}}
	if want.Audience != "" {
		req.Spec.Audiences = []string{want.Audience}
	}
	resp, err := p.rt.cfg.Client.CoreV1().ServiceAccounts(p.namespace).CreateToken(ctx, account, req, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("requesting token of ServiceAccount %s/%s: %w", p.namespace, account, err)
	}
	c.tokens[key] = issuedToken{
		token:   strings.TrimSpace(resp.Status.Token),
		renewAt: time.Now().Add(time.Until(resp.Status.ExpirationTimestamp.Time) * 4 / 5),
	}
	return resp.Status.Token, nil
}
