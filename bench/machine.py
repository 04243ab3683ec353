"""What machine this is, and what of others is on it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncssh

import do_failover

TOOLS = {
    "parallel-ssh": ["parallel-ssh", "--version"],
    "clush": ["clush", "--version"],
    "ansible": ["ansible", "--version"],
    "ssh": ["ssh", "-V"],
    "curl": ["curl", "--version"],
    "keepalived": ["keepalived", "--version"],
    "haproxy": ["haproxy", "-v"],
}


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, kernel, versions, date and load. A program that is not installed is None."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _read_field(Path("/proc/cpuinfo"), "model name"),
        "cores": os.cpu_count(),
        "memory": _read_field(Path("/proc/meminfo"), "MemTotal"),
        "kernel": platform.release(),
        "system": _read_field(Path("/etc/os-release"), "PRETTY_NAME"),
        "python": sys.version.split()[0],
        "do-failover": do_failover.__version__,
        "commit": _first_line(["git", "rev-parse", "--short", "HEAD"]),
        "asyncssh": asyncssh.__version__,
        "load": os.getloadavg()[0],
        "tools": {name: _first_line(argv) if shutil.which(name) else None for name, argv in TOOLS.items()},
    }


def _read_field(path: Path, name: str) -> str | None:
    for line in path.read_text(encoding="utf-8").splitlines():
        key, separator, value = line.partition("=" if "=" in line else ":")
        if separator and key.strip() == name:
            return value.strip().strip('"')
    return None


def _first_line(argv: list[str]) -> str | None:
    try:
        ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return None
    lines = (ended.stdout + ended.stderr).strip().splitlines()
    return lines[0] if lines else None
