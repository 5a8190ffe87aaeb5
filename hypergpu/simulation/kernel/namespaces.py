"""Network namespaces of this process, and TUN devices in them. Needs Linux and root, or user namespaces."""

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Final

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_RTM_SETLINK: Final = 19
_REQUEST_AND_ACK: Final = 5
_IFF_UP: Final = 1
_IFLA_TXQLEN: Final = 13
_QUEUE_PACKETS: Final = 20_000
"""Packets that a device holds until they are read. The queue of the line is the one that drops."""
_TUN: Final = Path("/dev/net/tun")
_SYSCTLS: Final = {"tcp_no_metrics_save": "1", "tcp_slow_start_after_idle": "1"}
"""Each connection starts from nothing, as in the link model."""


def missing_permission() -> str:
    """Return why a process may not have network namespaces and TUN devices here; empty if it may."""
    if sys.platform != "linux":
        return "it needs Linux"
    if not _TUN.exists():
        return f"there is no {_TUN}: load the kernel module tun, or start the container with --device {_TUN}"
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        reason = ""
        try:
            enter_new_namespace()
            open_device("probe", "10.99.0.1")  # it lasts as long as this process
        except OSError as error:
            reason = f"{error.strerror or error} ({error.filename})"
        finally:
            os.write(writable, reason.encode())
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as told:
        reason = told.read()
    os.waitpid(pid, 0)
    return f"{reason}: run it as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN" if reason else ""


def enter_new_namespace() -> int:
    """Move this thread to a new network namespace and return its descriptor; without root, to a user namespace first.

    Raises:
        OSError: not permitted.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _call("unshare", _CLONE_NEWNET)
    else:
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def enter(namespace: int) -> None:
    """Move this thread to a namespace.

    Raises:
        OSError: not permitted.
    """
    _call("setns", namespace, _CLONE_NEWNET)


def open_device(name: str, host: str) -> int:
    """Open a TUN device in this thread's namespace, with an address of a network of 254; return its descriptor.

    Raises:
        OSError: not permitted.
    """
    device = os.open(_TUN, os.O_RDWR)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        set_up(name, host)
        for key, value in _SYSCTLS.items():
            Path(f"/proc/sys/net/ipv4/{key}").write_text(value, encoding="ascii")
    except OSError as error:
        os.close(device)
        error.filename = error.filename or str(_TUN)
        raise
    return device


def set_up(name: str, host: str) -> None:
    """Give a device an address and bring it up.

    Raises:
        OSError: not permitted.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, address in ((_SIOCSIFADDR, host), (_SIOCSIFNETMASK, "255.255.255.0")):
            key, numeric = name.encode(), socket.inet_aton(address)
            fcntl.ioctl(control, request, struct.pack("16sHH4s16x", key, socket.AF_INET, 0, numeric))
    link = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(name), _IFF_UP, _IFF_UP)
    queue = struct.pack("=HHI", 8, _IFLA_TXQLEN, _QUEUE_PACKETS)
    head = struct.pack("=IHHII", 16 + len(link + queue), _RTM_SETLINK, _REQUEST_AND_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as routes:  # the call of ioctl needs the machine's own root
        routes.send(head + link + queue)
        (error,) = struct.unpack_from("=i", routes.recv(4096), 16)
    if error:
        raise OSError(-error, os.strerror(-error), f"set_up of {name}")


def _call(function: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{function} of a network namespace")
