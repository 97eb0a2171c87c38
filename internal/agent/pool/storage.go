package pool

import (
	"errors"

	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// Disks is the Storage of the node: raw block devices, or regular files.
type Disks struct {
	// Serve begins to serve the replicas of a pool that was opened, and Stop ends that before the pool is closed.
	Serve func(*engine.Pool) (Replicas, error)
	Stop  func()
}

// Probe implements Storage.
func (d Disks) Probe(path string) (*engine.Label, error) {
	dev, err := disk.Open(path, disk.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	return engine.Probe(dev)
}

// Create implements Storage.
func (d Disks) Create(devices []string, cfg engine.Config, opt engine.Options) (Engine, Replicas, error) {
	return d.with(devices, func(devs []disk.Device) (*engine.Pool, error) { return engine.Create(engine.Stripe(devs...), cfg, opt) })
}

// Open implements Storage.
func (d Disks) Open(devices []string, opt engine.Options) (Engine, Replicas, error) {
	return d.with(devices, func(devs []disk.Device) (*engine.Pool, error) { return engine.Open(devs, opt) })
}

func (d Disks) with(paths []string, open func([]disk.Device) (*engine.Pool, error)) (Engine, Replicas, error) {
	devs := make([]disk.Device, 0, len(paths))
	closeAll := func() {
		for _, dev := range devs {
			dev.Close()
		}
	}
	for _, path := range paths {
		dev, err := disk.Open(path, disk.Options{})
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		devs = append(devs, dev)
	}
	p, err := open(devs)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	replicas, err := d.Serve(p)
	if err != nil {
		return nil, nil, errors.Join(err, p.Close())
	}
	return opened{p, d.Stop, paths}, replicas, nil
}

// opened is an engine's pool as the agent wants to see it.
type opened struct {
	*engine.Pool
	stop  func()
	paths []string
}

// Names implements Engine.
func (o opened) Names() []string {
	var names []string
	for _, r := range o.Replicas() {
		names = append(names, r.Name())
	}
	return names
}

// Close implements Engine.
func (o opened) Close() error {
	o.stop()
	return o.Pool.Close()
}

// Destroy implements Engine. Without labels a device is blank to everybody; the log between them is garbage.
func (o opened) Destroy() error {
	if err := o.Close(); err != nil && !errors.Is(err, engine.ErrClosed) {
		return err
	}
	for _, path := range o.paths {
		if err := blank(path); err != nil {
			return err
		}
	}
	return nil
}

// blank clears the labels of a device that was this pool's, and gives its space back.
func blank(path string) error {
	dev, err := disk.Open(path, disk.Options{})
	if err != nil {
		return err
	}
	defer dev.Close()
	size := dev.Size()
	for off, n := range map[int64]int64{0: label.HeadBytes, size - label.TailBytes: label.TailBytes} {
		if err := dev.WritevAt([][]byte{make([]byte, n)}, off); err != nil {
			return err
		}
	}
	if err := dev.Discard(label.HeadBytes, size-label.HeadBytes-label.TailBytes); err != nil {
		return err
	}
	return dev.Flush()
}
