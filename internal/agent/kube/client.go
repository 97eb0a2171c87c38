package kube

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
)

// Config finds the API server by the usual rules: the files named by KUBECONFIG, else ~/.kube/config, else the service
// account of the pod. agent becomes part of the User-Agent.
func Config(agent string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the Kubernetes API server (set KUBECONFIG, or run in a pod with a service account): %w", err)
	}
	cfg.UserAgent = agent
	cfg.QPS, cfg.Burst = 50, 100
	return cfg, nil
}

// Scheme knows our kinds and the few of Kubernetes' own that agents and the command line use.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{cstorv1.AddToScheme, openebsv1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // a kind registered twice: cannot happen outside of development
		}
	}
	s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Event{}, &corev1.EventList{}, &corev1.Pod{}, &corev1.PodList{})
	s.AddKnownTypes(coordinationv1.SchemeGroupVersion, &coordinationv1.Lease{}, &coordinationv1.LeaseList{})
	for _, gv := range []schema.GroupVersion{corev1.SchemeGroupVersion, coordinationv1.SchemeGroupVersion} {
		metav1.AddToGroupVersion(s, gv)
	}
	return s
}

// NewClient returns a client that asks the API server each time. It knows its resources beforehand, so it needs no
// discovery, and making it does no I/O.
func NewClient(cfg *rest.Config) (client.WithWatch, error) {
	scheme := Scheme()
	mapper := meta.NewDefaultRESTMapper(scheme.PrioritizedVersionsAllGroups())
	for gvk := range scheme.AllKnownTypes() {
		mapper.Add(gvk, meta.RESTScopeNamespace)
	}
	c, err := client.NewWithWatch(cfg, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		return nil, fmt.Errorf("Kubernetes client: %w", err)
	}
	return c, nil
}

// Patience is how long a process that starts waits for the API server before it does without, if it can.
const Patience = time.Second

// Unanswered reports whether err says that the API server cannot be reached, or cannot answer now, and not what it decided.
func Unanswered(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return err != nil
	}
	code := status.Status().Code
	return code >= http.StatusInternalServerError || code == http.StatusTooManyRequests
}
