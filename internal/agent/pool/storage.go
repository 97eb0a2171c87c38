package pool

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// Disks is the Storage of the node: raw block devices, or regular files.
type Disks struct {
	// Serve begins to serve the replicas of a pool that was opened, and Stop ends that before the pool is closed.
	Serve func(*engine.Pool) (Replicas, error)
	Stop  func()
	// PageCacheBytes and DeltaEntries are options of the pools that are opened; 0: the defaults.
	PageCacheBytes int64
	DeltaEntries   int

	open func(path string, opt disk.Options) (disk.Device, error) // default disk.Open
	drop func(path string) error                                  // default forget

	mu   sync.Mutex
	hung map[string]bool // devices that have not answered yet
}

// patience is how long a device that is looked at may take to answer.
const patience = 5 * time.Second

var errHung = errors.New("it does not answer")

// Probe implements Storage.
func (d *Disks) Probe(path string) (*engine.Label, error) {
	return look(d, path, engine.Probe)
}

// Size implements Storage.
func (d *Disks) Size(path string) (int64, error) {
	return look(d, path, func(dev disk.Device) (int64, error) { return dev.Size(), nil })
}

// look looks at a device. One that hangs costs patience once; until it answers it is not asked again.
func look[T any](d *Disks, path string, at func(disk.Device) (T, error)) (none T, err error) {
	type answer struct {
		found T
		err   error
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hung[path] {
		return none, fmt.Errorf("device %s: %w", path, errHung)
	}
	answers := make(chan answer, 1)
	go func() {
		var a answer
		dev, err := d.device(path, disk.Options{ReadOnly: true})
		if a.err = err; err == nil {
			a.found, a.err = at(dev)
			dev.Close()
		}
		answers <- a
	}()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case a := <-answers:
		return a.found, a.err
	case <-limit.C:
	}
	if d.hung == nil {
		d.hung = map[string]bool{}
	}
	d.hung[path] = true
	go func() {
		<-answers
		d.mu.Lock()
		delete(d.hung, path)
		d.mu.Unlock()
	}()
	return none, fmt.Errorf("device %s: %w", path, errHung)
}

// Create implements Storage.
func (d *Disks) Create(groups []Group, cfg engine.Config, set Settings) (Engine, Replicas, error) {
	made, paths, err := d.openGroups(groups)
	if err != nil {
		return nil, nil, err
	}
	return d.serve(paths, devicesOf(made), func() (*engine.Pool, error) { return engine.Create(made, cfg, d.options(set)) })
}

// Open implements Storage.
func (d *Disks) Open(paths []string, set Settings) (Engine, Replicas, error) {
	if set.Fresh {
		drop := forget
		if d.drop != nil {
			drop = d.drop
		}
		for _, path := range paths {
			if err := drop(path); err != nil {
				return nil, nil, err
			}
		}
	}
	devs, err := d.openAll(paths)
	if err != nil {
		return nil, nil, err
	}
	return d.serve(paths, devs, func() (*engine.Pool, error) { return engine.Open(devs, d.options(set)) })
}

func (d *Disks) options(set Settings) engine.Options {
	algorithm, _ := compress.Parse(set.Compression) // what is unknown was refused before; lz4 is the default
	return engine.Options{
		ReadOnlyPercent: set.ReadOnlyPercent, Compression: algorithm, ScrubEvery: set.ScrubEvery, Log: set.Log,
		PageCacheBytes: d.PageCacheBytes, DeltaEntries: d.DeltaEntries,
	}
}

// serve opens a pool, which takes the devices over if that works, and begins to serve its replicas.
func (d *Disks) serve(paths []string, devs []disk.Device, open func() (*engine.Pool, error)) (Engine, Replicas, error) {
	p, err := open()
	if err != nil {
		closeAll(devs)
		return nil, nil, err
	}
	replicas, err := d.Serve(p)
	if err != nil {
		return nil, nil, errors.Join(err, p.Close())
	}
	return &opened{Pool: p, disks: d, paths: paths}, replicas, nil
}

// device opens a device.
func (d *Disks) device(path string, opt disk.Options) (disk.Device, error) {
	if d.open != nil {
		return d.open(path, opt)
	}
	return disk.Open(path, opt)
}

// forget drops what the system has cached of a device, so that reads tell what is on it: after a write that failed the
// cache may hold what the device does not. What is still to be written stays.
func forget(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("device %s: drop what is cached: %w", path, err)
	}
	return nil
}

// openAll opens devices for a pool; all or none.
func (d *Disks) openAll(paths []string) (devs []disk.Device, err error) {
	for _, path := range paths {
		dev, err := d.device(path, disk.Options{})
		if err != nil {
			closeAll(devs)
			return nil, err
		}
		devs = append(devs, dev)
	}
	return devs, nil
}

// openGroups opens the devices of raid groups that are to be made; all or none.
func (d *Disks) openGroups(groups []Group) (made []engine.Group, paths []string, err error) {
	for _, g := range groups {
		kind, err := raid.ParseKind(g.Kind)
		var devs []disk.Device
		if err == nil {
			devs, err = d.openAll(g.Devices)
		}
		if err != nil {
			closeAll(devicesOf(made))
			return nil, nil, err
		}
		made, paths = append(made, engine.Group{Kind: kind, Cache: g.Cache, Devices: devs}), append(paths, g.Devices...)
	}
	return made, paths, nil
}

func devicesOf(groups []engine.Group) (devs []disk.Device) {
	for _, g := range groups {
		devs = append(devs, g.Devices...)
	}
	return devs
}

// closeAll closes devices. It does not wait for those that hang, which stay locked until they answer.
func closeAll(devs []disk.Device) {
	closed := make(chan struct{}, len(devs))
	for _, dev := range devs {
		go func() {
			dev.Close()
			closed <- struct{}{}
		}()
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for range devs {
		select {
		case <-closed:
		case <-limit.C:
			return
		}
	}
}
