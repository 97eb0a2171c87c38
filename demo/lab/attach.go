package lab

import (
	"context"
	"fmt"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/initiator"
)

// Session is a volume attached through iSCSI. Like a kernel's session it lives through the loss of the target: requests
// are sent again when it is back.
type Session struct{ *initiator.Session }

// Attach logs in at the volume's target, through its Service as an application's node does.
func Attach(ctx context.Context, v *cstorv1.CStorVolume) (*Session, error) {
	s, err := initiator.Dial(ctx, initiator.Config{
		Portal:        v.Spec.TargetPortal,
		TargetName:    v.Spec.Iqn,
		InitiatorName: "iqn.2016-09.com.openebs.cstor:application",
		Reconnect:     true,
	})
	if err != nil {
		return nil, fmt.Errorf("attaching %s: %w", v.Name, err)
	}
	return &Session{s}, nil
}

// Close logs out. It may be called twice.
func (s *Session) Close() { _ = s.Session.Close() } // it always succeeds
