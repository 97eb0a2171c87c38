package wire

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout is for how long TCP waits for a peer whose machine is gone.
const userTimeout = 10 * time.Second

// Tune sets what a data connection needs: no delay (the default of net), and an end within seconds when the peer's
// machine is gone. A peer that is merely silent is the core's business.
func Tune(conn *net.TCPConn) error {
	if err := conn.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3,
	}); err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
	})
	return errors.Join(err, set)
}
