package proc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sourceName is the environment variable that says from which address a child connects, and what it starts itself.
const sourceName = "DEVCLUSTER_SOURCE"

// sources gives the connections of children to loopback addresses the source address of Spec.Source, where the kernel
// would choose 127.0.0.1 for all: it holds each connect(2) with a seccomp filter until the socket is bound. That needs no
// privileges.
type sources struct{ fd int }

// seccompNotif and seccompNotifResp are the kernel's struct seccomp_notif and seccomp_notif_resp (linux/seccomp.h).
type seccompNotif struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type seccompNotifResp struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// installSources puts the filter on this thread, which must be locked; processes that it starts inherit it.
func installSources() (*sources, error) {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CONNECT, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("no_new_privs: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return nil, fmt.Errorf("seccomp filter: %w", errno)
	}
	unix.CloseOnExec(int(fd))
	return &sources{fd: int(fd)}, nil
}

// serve lets connect calls go on, as long as this process lives.
func (s *sources) serve() {
	for {
		var call seccompNotif
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&call)))
		if errno != 0 {
			if errno == unix.EINTR || errno == unix.ENOENT { // the caller has died
				continue
			}
			return // then the kernel refuses all connect calls, which nobody can overlook
		}
		_ = call.bind() // without an address of its own it connects from the kernel's choice
		resp := seccompNotifResp{id: call.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(s.fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&resp))) // it may have died
	}
}

// bind binds the caller's socket if it is about to connect to a loopback address, and has none of its own yet.
func (c *seccompNotif) bind() error {
	source, err := sourceOf(int(c.pid))
	if err != nil || !source.IsValid() {
		return err
	}
	var to [unix.SizeofSockaddrInet4]byte // family, port, address
	if c.args[2] < uint64(len(to)) {
		return nil
	}
	n, err := unix.ProcessVMReadv(int(c.pid),
		[]unix.Iovec{{Base: &to[0], Len: uint64(len(to))}}, []unix.RemoteIovec{{Base: uintptr(c.args[1]), Len: len(to)}}, 0)
	if err != nil || n != len(to) || binary.NativeEndian.Uint16(to[:]) != unix.AF_INET || to[4] != 127 {
		return err
	}
	leader, err := threadGroup(int(c.pid))
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(leader, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, int(c.args[0]), 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if own, err := unix.Getsockname(fd); err != nil {
		return err
	} else if a, ok := own.(*unix.SockaddrInet4); !ok || a.Addr != [4]byte{} {
		return nil
	}
	// The port is chosen when the socket connects, so that ports are not used up.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Addr: source.As4()})
}

// sourceOf returns the address that a thread's process has in its environment; none if it has none.
func sourceOf(tid int) (netip.Addr, error) {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", tid))
	if err != nil {
		return netip.Addr{}, err
	}
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if value, ok := bytes.CutPrefix(v, []byte(sourceName+"=")); ok {
			return netip.ParseAddr(string(value))
		}
	}
	return netip.Addr{}, nil
}

// threadGroup returns the process that a thread belongs to.
func threadGroup(tid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte("Tgid:")); ok {
			return strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	return 0, errors.New("no Tgid")
}
