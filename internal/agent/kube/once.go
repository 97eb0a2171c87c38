package kube

import (
	"net/http"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// Once returns a configuration whose requests are made once: an answer that asks to try again later is an answer, since a
// request that is repeated unseen may find what it did itself. A request that was not answered takes its connection along,
// so that the next one does not wait on a peer that is gone.
func Once(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return once{rt} })
	return cfg
}

type once struct{ http.RoundTripper }

func (o once) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := o.RoundTripper.RoundTrip(req)
	if err != nil {
		utilnet.CloseIdleConnectionsFor(o.RoundTripper)
		return nil, err
	}
	resp.Header.Del("Retry-After")
	return resp, nil
}
