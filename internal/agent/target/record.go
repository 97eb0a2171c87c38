package target

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// Record is a volume's founding record in its CStorVolumeRecord. It reads from the API server each time; the client
// must not have a cache.
type Record struct {
	Client client.Client
	Owner  *cstorv1.CStorVolume // the record is named like it, and goes away with it
}

// Load returns the list that the record holds, nil if the volume was never founded.
func (r *Record) Load(ctx context.Context) (*volume.List, error) {
	cr := &cstorv1.CStorVolumeRecord{}
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: r.Owner.Namespace, Name: r.Owner.Name}, cr)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("record of volume %s: read: %w", r.Owner.Name, err)
	}
	return listOf(cr)
}

// Found writes l if the record holds no list, by a create or by an update that the API server refuses when the record
// changed since it was read, and returns the list that the record holds afterwards. An error leaves open whether l was
// written; calling it again resolves that.
func (r *Record) Found(ctx context.Context, l volume.List) (volume.List, error) {
	for {
		cr := &cstorv1.CStorVolumeRecord{}
		err := r.Client.Get(ctx, types.NamespacedName{Namespace: r.Owner.Namespace, Name: r.Owner.Name}, cr)
		exists := err == nil
		if err != nil && !apierrors.IsNotFound(err) {
			return volume.List{}, fmt.Errorf("record of volume %s: read: %w", r.Owner.Name, err)
		}
		if held, err := listOf(cr); err != nil {
			return volume.List{}, err
		} else if held != nil {
			return *held, nil
		}
		cr.List = recorded(l)
		if exists {
			err = r.Client.Update(ctx, cr)
		} else {
			cr.Namespace, cr.Name = r.Owner.Namespace, r.Owner.Name
			cr.OwnerReferences = []metav1.OwnerReference{{
				APIVersion: cstorv1.GroupVersion.String(), Kind: "CStorVolume", Name: r.Owner.Name, UID: r.Owner.UID,
			}}
			err = r.Client.Create(ctx, cr)
		}
		switch {
		case err == nil:
			return l, nil
		case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err):
			return volume.List{}, fmt.Errorf("record of volume %s: write: %w", r.Owner.Name, err)
		}
	}
}

func recorded(l volume.List) *cstorv1.RecordedList {
	out := &cstorv1.RecordedList{Epoch: int64(l.Epoch), Generation: int64(l.Generation)}
	for _, g := range l.Members {
		out.Members = append(out.Members, g.String())
	}
	return out
}

// listOf returns nil for a record without a list.
func listOf(cr *cstorv1.CStorVolumeRecord) (*volume.List, error) {
	if cr.List == nil {
		return nil, nil
	}
	l := &volume.List{Epoch: uint64(cr.List.Epoch), Generation: uint64(cr.List.Generation)}
	for _, m := range cr.List.Members {
		g, err := block.ParseGUID(m)
		if err != nil {
			return nil, fmt.Errorf("record of volume %s: %w", cr.Name, err)
		}
		l.Members = append(l.Members, g)
	}
	return l, nil
}
