package target

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

const (
	recordAttempt  = 300 * time.Millisecond // for the API server to answer
	recordLongest  = 5 * time.Second        // likewise, when it has been slow
	recordPatience = time.Second            // for all attempts together
	recordPauseMin = 50 * time.Millisecond  // between two attempts
	recordPauseMax = time.Second
)

// Record is a volume's CStorVolumeRecord. It reads from a quorum of the API server's store each time. Methods may be
// called concurrently.
type Record struct {
	Client client.Client        // without a cache, and made with kube.Once: what is repeated must be known here
	Owner  *cstorv1.CStorVolume // the record is named like it, and goes away with its CStorVolumeConfig

	attempt  time.Duration // default recordAttempt
	pauseMin time.Duration // default recordPauseMin

	mu     sync.Mutex
	newest uint64        // the highest version seen: an answer below comes from the past
	limit  time.Duration // for the next attempt; zero: as for the first
}

// Held is what the record was found to hold. The zero value: there is no record.
type Held struct {
	volume.Record
	object *cstorv1.CStorVolumeRecord
}

func (h Held) revision() string {
	if h.object == nil {
		return ""
	}
	return h.object.ResourceVersion
}

// Read returns what the record holds. It tries until it has an answer that is not older than an earlier one, or ctx ends.
func (r *Record) Read(ctx context.Context) (Held, error) {
	for pause := r.pause(); ; {
		held, err := r.get(ctx)
		if err == nil || !pause.sleep(ctx) {
			return held, err
		}
	}
}

// get asks once.
func (r *Record) get(ctx context.Context) (Held, error) {
	ctx, done := r.begin(ctx)
	defer done()
	cr := &cstorv1.CStorVolumeRecord{}
	held := Held{}
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: r.Owner.Namespace, Name: r.Owner.Name}, cr)
	if err == nil {
		err = r.belongs(cr)
	}
	if err == nil {
		held.object = cr
		held.Record, err = contentOf(cr)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return Held{}, fmt.Errorf("record of volume %s: read: %w", r.Owner.Name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if held.Version < r.newest {
		return Held{}, fmt.Errorf("record of volume %s: version %d was seen, and what the API server answers is version %d", r.Owner.Name, r.newest, held.Version)
	}
	r.newest = held.Version
	return held, nil
}

// belongs refuses the record of an earlier volume of that name, which is about to be removed.
func (r *Record) belongs(cr *cstorv1.CStorVolumeRecord) error {
	own := ownerOf(r.Owner)
	for _, o := range cr.OwnerReferences {
		if o.Kind == own.Kind && o.Name == own.Name && o.UID != own.UID {
			return fmt.Errorf("it is that of an earlier volume (of %s %s with UID %s): waiting until that is gone", o.Kind, o.Name, o.UID)
		}
	}
	return nil
}

// write asks once for the record to change from what it was found to hold to want, and returns what it is then.
func (r *Record) write(ctx context.Context, from Held, want volume.Record) (Held, error) {
	ctx, done := r.begin(ctx)
	defer done()
	cr := &cstorv1.CStorVolumeRecord{}
	if from.object != nil {
		cr = from.object.DeepCopy()
	}
	put(want, cr)
	var err error
	if from.object != nil {
		err = r.Client.Update(ctx, cr)
	} else {
		cr.Namespace, cr.Name = r.Owner.Namespace, r.Owner.Name
		cr.OwnerReferences = []metav1.OwnerReference{ownerOf(r.Owner)}
		err = r.Client.Create(ctx, cr)
	}
	if err != nil {
		return Held{}, fmt.Errorf("record of volume %s: write: %w", r.Owner.Name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.newest = max(r.newest, want.Version)
	return Held{Record: want, object: cr}, nil
}

// begin begins an attempt; done is called when it has ended. One that has no answer in its time makes the next one longer,
// twice as long, so that an API server that is slow is heard at last. An answer makes the next one twice as long as it
// took, but not less than half as long as this one.
func (r *Record) begin(ctx context.Context) (attempt context.Context, done func()) {
	limit, least := r.time(), cmp.Or(r.attempt, recordAttempt)
	start := time.Now()
	attempt, cancel := context.WithTimeout(ctx, limit)
	return attempt, func() {
		defer cancel()
		next := max(limit/2, 2*time.Since(start))
		if attempt.Err() != nil {
			if ctx.Err() != nil {
				return // it was not given its time
			}
			next = 2 * limit
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.limit = min(max(next, least), recordLongest)
	}
}

// time returns how long the next attempt may take.
func (r *Record) time() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return cmp.Or(r.limit, r.attempt, recordAttempt)
}

// patience is how long the record may take to be read or written, until it is decided anew what is wanted of it: a write, a
// look, and pauses.
func (r *Record) patience() time.Duration { return max(3*r.time(), recordPatience) }

// ownerOf returns what the record lives as long as: the volume's CStorVolumeConfig. A CStorVolume that is deleted by hand
// does not take along which replicas are the volume.
func ownerOf(cv *cstorv1.CStorVolume) metav1.OwnerReference {
	for _, o := range cv.OwnerReferences {
		if o.Kind == "CStorVolumeConfig" {
			return metav1.OwnerReference{APIVersion: o.APIVersion, Kind: o.Kind, Name: o.Name, UID: o.UID}
		}
	}
	return metav1.OwnerReference{APIVersion: cstorv1.GroupVersion.String(), Kind: "CStorVolume", Name: cv.Name, UID: cv.UID}
}

// put makes cr say c.
func put(c volume.Record, cr *cstorv1.CStorVolumeRecord) {
	cr.Version, cr.Epoch, cr.Nonce = int64(c.Version), int64(c.Epoch), ""
	if c.Nonce != 0 {
		cr.Nonce = fmt.Sprintf("%016x", c.Nonce)
	}
	cr.Claims = nil
	for _, n := range c.Claims {
		cr.Claims = append(cr.Claims, cstorv1.RecordedClaim{Version: int64(n.Version), Epoch: int64(n.By.Epoch), Nonce: fmt.Sprintf("%016x", n.By.Nonce)})
	}
	cr.Set = digits(c.Set)
	cr.Cfg = nil
	if c.Cfg != (volume.ListID{}) {
		cr.Cfg = &cstorv1.RecordedListID{Epoch: int64(c.Cfg.Epoch), Generation: int64(c.Cfg.Generation)}
	}
	cr.List = nil
	if l := c.List; l != nil {
		cr.List = &cstorv1.RecordedList{
			RecordedListID: cstorv1.RecordedListID{Epoch: int64(l.Epoch), Generation: int64(l.Generation)},
			Members:        digits(l.Members), Witness: l.Witness,
		}
	}
}

// contentOf is what cr says.
func contentOf(cr *cstorv1.CStorVolumeRecord) (c volume.Record, err error) {
	c.Version, c.Epoch = uint64(cr.Version), uint64(cr.Epoch)
	if cr.Nonce != "" {
		if c.Nonce, err = strconv.ParseUint(cr.Nonce, 16, 64); err != nil {
			return c, fmt.Errorf("nonce: %w", err)
		}
	}
	for _, x := range cr.Claims {
		n := volume.Noted{Version: uint64(x.Version), By: volume.Promise{Epoch: uint64(x.Epoch)}}
		if n.By.Nonce, err = strconv.ParseUint(x.Nonce, 16, 64); err != nil {
			return c, fmt.Errorf("nonce of a claim: %w", err)
		}
		c.Claims = append(c.Claims, n)
	}
	if c.Set, err = guidsOf(cr.Set); err != nil {
		return c, err
	}
	if cr.Cfg != nil {
		c.Cfg = volume.ListID{Epoch: uint64(cr.Cfg.Epoch), Generation: uint64(cr.Cfg.Generation)}
	}
	if l := cr.List; l != nil {
		c.List = &volume.List{Epoch: uint64(l.Epoch), Generation: uint64(l.Generation), Witness: l.Witness}
		c.List.Members, err = guidsOf(l.Members)
	}
	return c, err
}

func digits(guids []block.GUID) (out []string) {
	for _, g := range guids {
		out = append(out, g.String())
	}
	return out
}

func guidsOf(digits []string) (out []block.GUID, err error) {
	for _, d := range digits {
		g, err := block.ParseGUID(d)
		if err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, nil
}
