package noderuntime

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// environment is a container's environment: in order, without doubles; a later value replaces an earlier one.
type environment struct {
	names  []string
	values map[string]string
}

func (e *environment) set(name, value string) {
	if e.values == nil {
		e.values = map[string]string{}
	}
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

// expand replaces $(NAME) by values set so far, with the rules of Kubernetes.
func (e *environment) expand(s string) string {
	return expansion.Expand(s, expansion.MappingFuncFor(e.values))
}

func (e *environment) list() []string {
	out := make([]string, 0, len(e.names))
	for _, n := range e.names {
		out = append(out, n+"="+e.values[n])
	}
	return out
}

// command is a container's command line and environment, ready to execute.
type command struct {
	path string
	args []string // argv, including argv[0]
	env  []string
}

// configError is a mistake in the pod or something it refers to that does not exist (yet).
type configError struct{ error }

// buildCommand works out what a container executes. image is the executable of its image, home its own directory, own
// what containerEnv says.
func (p *pod) buildCommand(c *v1.Container, image, home string, own *environment, ms mounts) *command {
	var env environment
	env.set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	env.set("HOME", home)
	env.set("TMPDIR", home+"/tmp")
	env.set("HOSTNAME", p.name)
	env.set("KUBERNETES_SERVICE_HOST", p.rt.cfg.APIServer.Addr().String())
	env.set("KUBERNETES_SERVICE_PORT", fmt.Sprint(p.rt.cfg.APIServer.Port()))
	env.set("KUBECONFIG", p.credentials.kubeconfigPath())
	for _, n := range own.names {
		env.set(n, ms.translate(own.values[n]))
	}
	expand := func(in []string) []string {
		out := make([]string, 0, len(in))
		for _, s := range in {
			out = append(out, ms.translate(own.expand(s)))
		}
		return out
	}
	cmd := resolveCommand(image, expand(c.Command))
	cmd.args = append(cmd.args, expand(c.Args)...)
	cmd.env = env.list()
	return cmd
}

// resolveCommand decides which executable a container's command means: a program of the host where it is an absolute
// path that exists, otherwise always the image's only program, under the name the command gives.
func resolveCommand(image string, words []string) *command {
	if len(words) == 0 {
		return &command{path: image, args: []string{image}}
	}
	cmd := &command{path: image, args: words}
	if name := words[0]; strings.HasPrefix(name, "/") {
		if st, err := os.Stat(name); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			cmd.path = name
		}
	}
	return cmd
}

// containerEnv is what the container's env and envFrom say.
func (p *pod) containerEnv(ctx context.Context, c *v1.Container) (*environment, error) {
	env := &environment{}
	for _, from := range c.EnvFrom {
		data, err := p.envSource(ctx, from)
		if err != nil {
			return nil, err
		}
		names := make([]string, 0, len(data))
		for n := range data {
			names = append(names, n)
		}
		sort.Strings(names)
		for _, n := range names {
			env.set(from.Prefix+n, data[n])
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			env.set(e.Name, env.expand(e.Value))
			continue
		}
		value, ok, err := p.envValue(ctx, c, e.ValueFrom)
		if err != nil {
			return nil, fmt.Errorf("env %s: %w", e.Name, err)
		}
		if ok {
			env.set(e.Name, value)
		}
	}
	return env, nil
}

func (p *pod) envSource(ctx context.Context, from v1.EnvFromSource) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		return p.configMap(ctx, from.ConfigMapRef.Name, optional(from.ConfigMapRef.Optional))
	case from.SecretRef != nil:
		return p.secret(ctx, from.SecretRef.Name, optional(from.SecretRef.Optional))
	}
	return nil, nil
}

// envValue resolves one valueFrom; ok is false where an optional source does not exist.
func (p *pod) envValue(ctx context.Context, c *v1.Container, from *v1.EnvVarSource) (value string, ok bool, err error) {
	var data map[string]string
	var key, kind, name string
	var opt bool
	switch {
	case from.FieldRef != nil:
		value, err = p.field(from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = p.resourceField(c, from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		kind, name, key, opt = "ConfigMap", from.ConfigMapKeyRef.Name, from.ConfigMapKeyRef.Key, optional(from.ConfigMapKeyRef.Optional)
		data, err = p.configMap(ctx, name, opt)
	case from.SecretKeyRef != nil:
		kind, name, key, opt = "Secret", from.SecretKeyRef.Name, from.SecretKeyRef.Key, optional(from.SecretKeyRef.Optional)
		data, err = p.secret(ctx, name, opt)
	default:
		return "", false, configError{fmt.Errorf("unsupported valueFrom")}
	}
	if err != nil {
		return "", false, err
	}
	value, ok = data[key]
	if !ok && !opt {
		return "", false, configError{fmt.Errorf("couldn't find key %s in %s %s/%s", key, kind, p.namespace, name)}
	}
	return value, ok, nil
}

// field is the downward API's fieldRef.
func (p *pod) field(path string) (string, error) {
	obj := p.object()
	switch path {
	case "spec.nodeName":
		return obj.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return obj.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return p.node.cfg.Address.String(), nil
	case "status.podIP", "status.podIPs":
		return p.address().String(), nil
	}
	value, err := fieldpath.ExtractFieldPathAsString(obj, path)
	if err != nil {
		return "", configError{fmt.Errorf("fieldRef %s: %w", path, err)}
	}
	return value, nil
}

// resourceField is the downward API's resourceFieldRef; what has no limit is limited by the node.
func (p *pod) resourceField(c *v1.Container, ref *v1.ResourceFieldSelector) (string, error) {
	source := c
	for i := range p.object().Spec.Containers {
		if k := &p.object().Spec.Containers[i]; k.Name == ref.ContainerName {
			source = k
		}
	}
	kind, name, _ := strings.Cut(ref.Resource, ".")
	list := source.Resources.Limits
	if kind == "requests" {
		list = source.Resources.Requests
	}
	quantity, ok := list[v1.ResourceName(name)]
	if !ok && kind == "limits" {
		quantity = p.node.capacity()[v1.ResourceName(name)]
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == string(v1.ResourceCPU) {
		return fmt.Sprint(ceilDiv(quantity.MilliValue(), divisor.MilliValue())), nil
	}
	return fmt.Sprint(ceilDiv(quantity.Value(), divisor.Value())), nil
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

// configMap reads a ConfigMap's data, binary data included; nil if it is optional and does not exist.
func (p *pod) configMap(ctx context.Context, name string, opt bool) (map[string]string, error) {
	m, err := p.rt.cfg.Client.CoreV1().ConfigMaps(p.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, lookupError(err, opt)
	}
	data := make(map[string]string, len(m.Data)+len(m.BinaryData))
	for k, v := range m.BinaryData {
		data[k] = string(v)
	}
	for k, v := range m.Data {
		data[k] = v
	}
	return data, nil
}

// secret reads a Secret's data; nil if it is optional and does not exist.
func (p *pod) secret(ctx context.Context, name string, opt bool) (map[string]string, error) {
	s, err := p.rt.cfg.Client.CoreV1().Secrets(p.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, lookupError(err, opt)
	}
	data := make(map[string]string, len(s.Data))
	for k, v := range s.Data {
		data[k] = string(v)
	}
	return data, nil
}

func lookupError(err error, opt bool) error {
	if !apierrors.IsNotFound(err) {
		return err
	}
	if opt {
		return nil
	}
	return configError{err}
}

func optional(b *bool) bool { return b != nil && *b }
