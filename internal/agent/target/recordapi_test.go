package target

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/volume"
)

// fault is how the API server treats a request.
type fault int

const (
	works   fault = iota
	dropped       // the connection ends, nothing was done
	lost          // it was done, and the answer is lost
	late          // the connection ends, and it is done later
	hangs         // no answer, nothing is done
	hangsOn       // no answer, and it is done when nobody waits any more
	fails         // an error of the server, nothing was done
	failsOn       // an error of the server that asks to try again, and it was done
	busy          // it was not looked at
	forbids       // it was refused
	past          // a read is answered with what was so before the last change
	faults
)

// api is an API server that holds one record, over HTTP.
type api struct {
	t        *testing.T
	server   *httptest.Server
	resource schema.GroupResource

	mu      sync.Mutex
	object  *cstorv1.CStorVolumeRecord
	before  *cstorv1.CStorVolumeRecord // the last change
	version int
	history []volume.Record // of all changes, in order
	late    []func() error
	writes  int // requests
	fault   func(write bool) fault
}

func newAPI(t *testing.T) *api {
	a := &api{t: t, resource: schema.GroupResource{Group: cstorv1.GroupVersion.Group, Resource: "cstorvolumerecords"}}
	a.server = httptest.NewServer(a)
	t.Cleanup(a.server.Close)
	return a
}

// record is a target's view of it.
func (a *api) record() *Record {
	a.t.Helper()
	c, err := kube.NewClient(kube.Once(&rest.Config{Host: a.server.URL, QPS: -1}))
	if err != nil {
		a.t.Fatal(err)
	}
	owner := &cstorv1.CStorVolume{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv, UID: "u"}}
	return &Record{Client: c, Owner: owner, attempt: 100 * time.Millisecond, pauseMin: time.Millisecond}
}

// next makes the next requests meet faults, reads and writes each their own; later ones work.
func (a *api) next(reads, writes []fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = func(write bool) fault {
		of := &reads
		if write {
			of = &writes
		}
		if len(*of) == 0 {
			return works
		}
		f := (*of)[0]
		*of = (*of)[1:]
		return f
	}
}

// label changes the object without changing what it says.
func (a *api) label() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before = a.object.DeepCopy()
	a.version++
	a.object.ResourceVersion = strconv.Itoa(a.version)
}

// settle does everything that is still to be done.
func (a *api) settle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.late) > 0 {
		a.oldest()
	}
}

func (a *api) oldest() {
	f := a.late[0]
	a.late = a.late[1:]
	_ = f()
}

// put is a create or an update. a.mu is held.
func (a *api) put(cr *cstorv1.CStorVolumeRecord) error {
	switch {
	case cr.ResourceVersion == "" && a.object != nil:
		return apierrors.NewAlreadyExists(a.resource, pv)
	case cr.ResourceVersion != "" && a.object == nil:
		return apierrors.NewNotFound(a.resource, pv)
	case cr.ResourceVersion != "" && cr.ResourceVersion != a.object.ResourceVersion:
		return apierrors.NewConflict(a.resource, pv, nil)
	}
	c, err := contentOf(cr)
	if err != nil {
		a.t.Error(err)
	}
	a.version++
	a.before, a.object = a.object, cr.DeepCopy()
	a.object.ResourceVersion = strconv.Itoa(a.version)
	a.history = append(a.history, c)
	return nil
}

func (a *api) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	write := req.Method != http.MethodGet
	cr := &cstorv1.CStorVolumeRecord{}
	if write {
		if err := json.NewDecoder(req.Body).Decode(cr); err != nil {
			a.t.Error(err)
		}
	}
	if !strings.Contains(req.URL.Path, "/namespaces/"+ns+"/cstorvolumerecords") || req.URL.Query().Get("resourceVersion") != "" {
		a.t.Errorf("%s %s", req.Method, req.URL)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if write {
		a.writes++
	}
	f := works
	if a.fault != nil {
		f = a.fault(write)
	}
	do := func() error {
		if !write {
			return nil
		}
		return a.put(cr)
	}
	answer := a.object
	var err error
	switch f {
	case dropped:
		panic(http.ErrAbortHandler)
	case lost:
		_ = do()
		panic(http.ErrAbortHandler)
	case late:
		a.late = append(a.late, do)
		panic(http.ErrAbortHandler)
	case hangs, hangsOn:
		a.mu.Unlock()
		<-req.Context().Done()
		a.mu.Lock()
		if f == hangsOn {
			_ = do()
		}
		panic(http.ErrAbortHandler)
	case fails:
		err = apierrors.NewInternalError(http.ErrAbortHandler)
	case failsOn:
		_ = do()
		err = apierrors.NewServerTimeout(a.resource, "write", 1)
		w.Header().Set("Retry-After", "1")
	case busy:
		err = apierrors.NewTooManyRequests("busy", 1)
		w.Header().Set("Retry-After", "1")
	case forbids:
		err = apierrors.NewForbidden(a.resource, pv, nil)
	case past:
		if answer = a.before; write {
			err = do()
			answer = a.object
		}
	default:
		err = do()
		answer = a.object
	}
	if err == nil && answer == nil {
		err = apierrors.NewNotFound(a.resource, pv)
	}
	w.Header().Set("Content-Type", "application/json")
	if status, ok := err.(apierrors.APIStatus); ok {
		s := status.Status()
		s.Kind, s.APIVersion = "Status", "v1"
		w.WriteHeader(int(s.Code))
		_ = json.NewEncoder(w).Encode(s)
		return
	}
	out := answer.DeepCopy()
	out.Kind, out.APIVersion = "CStorVolumeRecord", cstorv1.GroupVersion.String()
	_ = json.NewEncoder(w).Encode(out)
}
