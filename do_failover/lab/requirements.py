"""Whether this machine can have a lab: Linux, root, the programs, the Python packages. Each refusal is one sentence."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

from do_failover.errors import MissingProgramError
from do_failover.lab.errors import NotHereError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What programs of the lab find; `su` without a dash leaves the sbin directories out."""

_PACKAGES = {
    "keepalived": "keepalived",
    "haproxy": "haproxy",
    "sshd": "openssh-server",
    "nft": "nftables",
    "ip": "iproute2",
    "ping": "iputils-ping",
    "pgrep": "procps",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
_MODULES = ("aiohttp", "trustme", "cryptography")


def check_machine() -> None:
    """Return when a lab can run here. NotHereError (exit 4): no Linux or no root. MissingProgramError (5): what to install."""
    if sys.platform != "linux":
        message = f"a lab is made of Linux network namespaces, and this is {sys.platform}: run it on a Linux machine"
        raise NotHereError(message)
    if os.geteuid() != 0:
        message = "a lab makes network namespaces and mounts, which needs root: run it with sudo"
        raise NotHereError(message)
    missing = sorted({package for program, package in _PACKAGES.items() if shutil.which(program, path=PATH) is None})
    if missing:
        message = f"the lab runs real programs that are not installed here: apt-get install {' '.join(missing)}"
        raise MissingProgramError(message)
    if any(importlib.util.find_spec(name) is None for name in _MODULES):
        message = "the lab needs a few more Python packages: pip install 'do-failover[lab]'"
        raise MissingProgramError(message)
