"""Takes from Python what only Linux has, before a program begins; `tests.plain.world` puts it on the path."""

import fcntl
import os
import signal
import socket
import sys
import types

GONE = {
    os: (
        "copy_file_range",
        "eventfd",
        "memfd_create",
        "pidfd_open",
        "pipe2",
        "posix_fadvise",
        "posix_fallocate",
        "sched_getaffinity",
        "sched_setaffinity",
        "splice",
        "waitid",
        "O_PATH",
        "O_TMPFILE",
        "P_PIDFD",
    ),
    signal: ("pidfd_send_signal", "sigtimedwait", "sigwaitinfo"),
    fcntl: ("F_OFD_SETLK", "F_OFD_SETLKW", "F_OFD_GETLK", "F_ADD_SEALS", "F_GET_SEALS", "F_SETPIPE_SZ"),
    socket: ("SO_PEERCRED", "SO_BINDTODEVICE", "SOCK_CLOEXEC", "SOCK_NONBLOCK", "TCP_USER_TIMEOUT", "TCP_KEEPIDLE"),
}
for module, names in GONE.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.platform = "darwin"
sys.modules["_scproxy"] = types.ModuleType("_scproxy")  # where urllib looks up a Mac's proxies
for name in ("_get_proxy_settings", "_get_proxies"):
    setattr(sys.modules["_scproxy"], name, dict)
