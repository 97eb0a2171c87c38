// Package harness runs the data plane without Kubernetes: targets and pools as separate processes on this machine, each
// described by a Spec, for integration tests and benchmarks. A program that uses it calls Main first thing; the processes
// are that same program, started again.
//
// Everything about a process is fixed when it is made (addresses, files), so that it can be killed at any moment and
// started again as what it was. It answers questions on a unix socket, see Control.
package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof" // on the control socket
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/replica"
	"github.com/cstor-go/cstor/internal/target"
	"github.com/cstor-go/cstor/internal/volume"
)

// Spec is a process: one of its parts is set.
type Spec struct {
	Name   string      `json:"name"`
	Dir    string      `json:"dir"` // for its socket and its log
	Pool   *PoolSpec   `json:"pool,omitempty"`
	Target *TargetSpec `json:"target,omitempty"`
	Echo   string      `json:"echo,omitempty"`  // listen address of a server that answers frames and keeps nothing
	Procs  int         `json:"procs,omitempty"` // GOMAXPROCS, 0: the default
}

// PoolSpec is a pool and its replica server.
type PoolSpec struct {
	Devices    []string       `json:"devices"`
	DeviceSize int64          `json:"deviceSize"` // bytes, of files that do not exist yet
	PullListen string         `json:"pullListen"`
	Replicas   []replica.Spec `json:"replicas"` // attached at the start
}

// TargetSpec is a volume's target.
type TargetSpec struct {
	Volume        string          `json:"volume"`
	Size          int64           `json:"size"` // bytes
	ReplicaListen string          `json:"replicaListen"`
	ISCSIListen   string          `json:"iscsiListen"`
	Record        string          `json:"record"` // file
	Settings      volume.Settings `json:"settings"`
	Desired       volume.Desired  `json:"desired"`
}

// IQN is the iSCSI name of a volume's target.
func (t *TargetSpec) IQN() string { return "iqn.2016-09.com.openebs.cstor:" + t.Volume }

const specEnv = "CSTOR_HARNESS_SPEC"

// Main runs the process that the environment describes and does not return, or returns at once if there is none.
func Main() {
	text := os.Getenv(specEnv)
	if text == "" {
		return
	}
	var s Spec
	err := json.Unmarshal([]byte(text), &s)
	if err == nil {
		err = s.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (s *Spec) socket() string { return filepath.Join(s.Dir, s.Name+".sock") }

// run serves until SIGTERM.
func (s *Spec) run() error {
	if s.Procs > 0 {
		runtime.GOMAXPROCS(s.Procs)
	} else if s.Pool != nil {
		pool.Processors()
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("process", s.Name))
	mux := http.NewServeMux()
	mux.Handle("/debug/", http.DefaultServeMux)
	control := func() error {
		os.Remove(s.socket())
		l, err := net.Listen("unix", s.socket())
		if err != nil {
			return err
		}
		go http.Serve(l, mux)
		return nil
	}
	switch {
	case s.Pool != nil:
		return s.Pool.run(ctx, s.Name, mux, control)
	case s.Target != nil:
		return s.Target.run(ctx, mux, control)
	case s.Echo != "":
		return runEcho(ctx, s.Echo, control)
	}
	return errors.New("harness: empty spec")
}

// OpenPool opens the pool on some files, which are made if they do not exist.
func OpenPool(name string, paths []string, size int64) (*pool.Pool, error) {
	var devices []disk.Device
	blank := 0
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err == nil && info.Size() < size {
			if err := f.Truncate(size); err != nil {
				return nil, err
			}
		}
		f.Close()
		d, err := disk.Open(path, disk.Options{})
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
		if _, err := pool.Probe(d); errors.Is(err, pool.ErrBlank) {
			blank++
		}
	}
	opt := pool.Options{Log: slog.Default()}
	if blank == len(devices) {
		return pool.Create(pool.Stripe(devices...), pool.Config{Name: name, Owner: name}, opt)
	}
	return pool.Open(devices, opt)
}

func (s *PoolSpec) run(ctx context.Context, name string, mux *http.ServeMux, control func() error) error {
	p, err := OpenPool(name, s.Devices, s.DeviceSize)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", s.PullListen)
	if err != nil {
		return err
	}
	srv := replica.New(replica.Config{Pool: p, PullListen: l})
	for _, r := range s.Replicas {
		if err := srv.Attach(r); err != nil {
			return err
		}
	}
	handle(mux, "/status", func(struct{}) (any, error) { return srv.Status(), nil })
	handle(mux, "/stats", func(struct{}) (any, error) { return p.Stats(), nil })
	handle(mux, "/attach", func(r replica.Spec) (any, error) { return nil, srv.Attach(r) })
	handle(mux, "/detach", func(name string) (any, error) { srv.Detach(name); return nil, nil })
	handle(mux, "/destroy", func(name string) (any, error) { return nil, srv.Destroy(name) })
	if err := control(); err != nil {
		return err
	}
	if err := srv.Serve(ctx); err != nil {
		return err
	}
	return p.Close()
}

func (s *TargetSpec) run(ctx context.Context, mux *http.ServeMux, control func() error) error {
	l, err := net.Listen("tcp", s.ReplicaListen)
	if err != nil {
		return err
	}
	var srv *iscsi.Server
	t := target.New(target.Config{
		Volume: s.Volume, Size: s.Size, ReplicaListen: l, Record: FileRecord(s.Record), Settings: s.Settings, Desired: s.Desired,
		DropSessions: func() { srv.Drop() },
	})
	srv, err = iscsi.NewServer(iscsi.Config{
		TargetName: s.IQN(), Serial: s.Volume, Device: t,
		Ready: func() error {
			if st := t.Status(); !st.Serving {
				return errors.New(st.Holding)
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	front, err := net.Listen("tcp", s.ISCSIListen)
	if err != nil {
		return err
	}
	go srv.Serve(front)
	defer srv.Close()
	handle(mux, "/status", func(struct{}) (any, error) { return t.Status(), nil })
	handle(mux, "/want", func(d volume.Desired) (any, error) { t.Want(d); return nil, nil })
	if err := control(); err != nil {
		return err
	}
	return t.Serve(ctx)
}

// handle answers JSON with JSON.
func handle[In any](mux *http.ServeMux, path string, f func(In) (any, error)) {
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if r.Method == http.MethodPost {
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		out, err := f(in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		json.NewEncoder(w).Encode(out)
	})
}

// FileRecord is a volume's record in files, one for each version. It implements target.Record.
type FileRecord string

func (r FileRecord) file(version uint64) string { return fmt.Sprintf("%s.%d", r, version) }

// Read implements target.Record.
func (r FileRecord) Read(context.Context) (is volume.Record, err error) {
	for {
		b, err := os.ReadFile(r.file(is.Version + 1))
		if errors.Is(err, os.ErrNotExist) {
			return is, nil
		}
		if err != nil {
			return is, err
		}
		next := volume.Record{}
		if err := json.Unmarshal(b, &next); err != nil {
			return is, err
		}
		is = next
	}
}

// Write implements target.Record: the first link to the name of a version wins. Each is one more than the one before, since none
// ever goes back here.
func (r FileRecord) Write(ctx context.Context, _ uint64, want volume.Record) (volume.Record, error) {
	b, err := json.Marshal(want)
	if err != nil {
		return want, err
	}
	tmp := fmt.Sprintf("%s.%v", r, block.NewGUID())
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return want, err
	}
	defer os.Remove(tmp)
	if err := os.Link(tmp, r.file(want.Version)); err != nil && !errors.Is(err, os.ErrExist) {
		return want, err
	}
	return r.Read(ctx)
}
