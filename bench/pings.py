"""The least that the peers themselves cost: their pings, started in each peer's network namespace by a shell that waits there.

python -m bench.pings PUBLIC RESERVED_IP PID...      in the lab's own namespaces; says {} when all wait, and starts them at its go

No SSH, no load balancer: what is left of a fan-out when everything but the pings is free. Peers share this machine's cores here.
"""

from __future__ import annotations

import subprocess
import sys


def main(public: str, reserved_ip: str, pids: list[str]) -> None:
    """Let all of them wait, then start, then end."""
    pings = f"ping -n -q -c 1 -W 1 {public} >/dev/null; ping -n -q -c 1 -W 1 {reserved_ip} >/dev/null"
    argv = ("sh", "-c", f"echo; read -r go; {pings}")
    shells = [
        subprocess.Popen(
            ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for pid in pids
    ]
    for shell in shells:
        if shell.stdout is not None:
            shell.stdout.readline()
    print("{}", flush=True)
    sys.stdin.readline()
    for shell in shells:
        if shell.stdin is not None:
            shell.stdin.write(b"go\n")
            shell.stdin.flush()
    for shell in shells:
        shell.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
