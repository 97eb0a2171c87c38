package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/cstor-go/cstor/internal/agent/kube"
)

// A pool that is started while the API server does not answer serves what is on its devices. Where these are it has kept on
// the node; that they are its own their labels say, and which replicas to serve, and where, those say themselves. Nothing is
// created, replaced, or destroyed before the API server has answered.

// errNotOurs ends the process: a new one opens what is this object's.
var errNotOurs = errors.New("the pool that was opened without the API server belongs to an earlier CStorPoolInstance of this name: this process ends")

// known is what is kept on the node.
type known struct {
	on  onNode // what was written last
	uid string // of the object whose pool was opened without the API server, until that was read
	why string // what could not be written
}

// onNode is how it is kept.
type onNode struct {
	UID             string   `json:"uid"`     // of the CStorPoolInstance
	Devices         []string `json:"devices"` // paths
	ReadOnlyPercent int      `json:"readOnlyPercent"`
	Compression     string   `json:"compression"`
}

func (a *Agent) knownFile() string { return filepath.Join(a.StateDir, a.Instance+".json") }

// begin reads the pool's objects for the first time. While the API server does not answer the pool is opened without.
func (a *Agent) begin(ctx context.Context) error {
	on, err := a.recall()
	if err != nil {
		a.Log.Warn("what the node knows of the pool cannot be read", "err", err)
	}
	eng, replicas := a.open()
	soon, cancel := ctx, context.CancelFunc(func() {})
	if on != nil && eng == nil {
		soon, cancel = context.WithTimeout(ctx, kube.Patience)
	}
	defer cancel()
	err = a.read(soon)
	if err != nil {
		a.instance = nil // it goes with its replicas, or not at all
	}
	switch {
	case err != nil && on != nil && eng == nil && kube.Unanswered(err) && ctx.Err() == nil:
		return errors.Join(err, a.openKnown(*on))
	case err != nil:
		return err
	case a.instance == nil:
		return fmt.Errorf("CStorPoolInstance %s/%s does not exist", a.Namespace, a.Instance)
	case eng == nil:
		return nil
	case string(a.instance.UID) != a.known.uid:
		a.unremember()
		return errNotOurs
	}
	for _, s := range replicas.Status() {
		if a.claims[s.Name] == nil {
			a.forget(s.Name)
		}
	}
	a.poolEvents.Event(ctx, a.instance, corev1.EventTypeNormal, "Pool Imported", "Pool Import successful: "+poolName(a.instance)+", without the API server")
	return nil
}

// openKnown opens the pool that is on the devices that the node knows, and serves its replicas.
func (a *Agent) openKnown(on onNode) error {
	if a.Now().Before(a.nextOpen) {
		return nil
	}
	devices := make([]listed, len(on.Devices))
	for i, path := range on.Devices {
		devices[i] = listed{name: path, path: path}
		devices[i].label, devices[i].err = a.Storage.Probe(path)
	}
	oneOwner(devices)
	what, ours, wrong := judge(devices, identity{owner: on.UID, made: true})
	if what != imports {
		return a.notOpened(wrong)
	}
	paths := make([]string, len(ours))
	for i, d := range ours {
		paths[i] = d.path
	}
	set := Settings{ReadOnlyPercent: on.ReadOnlyPercent, Compression: on.Compression, ScrubEvery: a.ScrubEvery, Log: a.Log}
	opening := a.opening(&set)
	eng, replicas, err := a.Storage.Open(paths, set)
	if err != nil {
		return a.notOpened(errors.Join(err, wrong))
	}
	a.known.on, a.known.uid = on, on.UID
	a.setOpen(eng, replicas, "")
	a.disks = inventory{limit: on.ReadOnlyPercent}
	a.recovery.opened = a.Now()
	a.trust(opening)
	a.backoff.Reset()
	var errs []error
	for _, spec := range replicas.Known() {
		errs = append(errs, replicas.Attach(spec))
	}
	err = errors.Join(errs...)
	a.Log.Warn("the API server does not answer: pool is served without it", "pool", a.Instance, "devices", len(paths), "replicas", len(errs), "suspect", set.Suspect, "wrong", wrong, "err", err)
	return err
}

// notOpened notes why the pool is not there, and sets the time of the next attempt.
func (a *Agent) notOpened(cause error) error {
	a.nextOpen = a.Now().Add(a.backoff.Next())
	a.setOpen(nil, nil, cause.Error())
	return fmt.Errorf("open pool without the API server: %w", cause)
}

// recall reads what is kept on the node, nil if nothing is.
func (a *Agent) recall() (*onNode, error) {
	if a.StateDir == "" {
		return nil, nil
	}
	b, err := os.ReadFile(a.knownFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	on := new(onNode)
	if err := json.Unmarshal(b, on); err != nil || on.UID == "" {
		return nil, fmt.Errorf("%s: %w", a.knownFile(), errors.Join(err, errors.New("it is not what this program writes there")))
	}
	return on, nil
}

// remember keeps on the node what opens the pool again. What is not stable there after a power cut costs nothing but to wait
// for the API server.
func (a *Agent) remember(eng Engine) {
	if a.StateDir == "" {
		return
	}
	set := a.settings()
	on := onNode{UID: string(a.instance.UID), ReadOnlyPercent: set.ReadOnlyPercent, Compression: set.Compression}
	for _, d := range eng.Devices() {
		if filepath.IsAbs(d.Name) {
			on.Devices = append(on.Devices, d.Name)
		}
	}
	slices.Sort(on.Devices)
	if reflect.DeepEqual(on, a.known.on) {
		return
	}
	err := writeFile(a.knownFile(), on)
	if err == nil {
		a.known.on, a.known.why = on, ""
	} else if why := err.Error(); why != a.known.why {
		a.known.why = why
		a.Log.Warn("cannot keep on the node where the pool's devices are: without the API server it will not be opened", "err", err)
	}
}

// unremember lets the node forget the pool.
func (a *Agent) unremember() {
	if a.StateDir == "" {
		return
	}
	a.known.on = onNode{}
	if err := os.Remove(a.knownFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.Log.Warn("cannot remove what the node knows of the pool", "err", err)
	}
}

// writeFile replaces a file by one that holds v, or leaves it as it is.
func writeFile(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
