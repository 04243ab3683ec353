"""share/do-failover-peer, run here: by dash, by BusyBox, with the real tools or with stand-ins that note their arguments."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

SCRIPT = Path(str(resources.files("do_failover").joinpath("share/do-failover-peer")))
SHELLS = {"dash": ("/bin/sh",), "busybox": (shutil.which("busybox") or "/bin/busybox", "ash")}
GREETING = "do-failover-peer hello\n"
PATTERN = "00112233445566778899aabbccddeeff"
MOST_KIB = 32768
ALLOWED = "203.0.113.47,198.51.100.0/24,2001:db8::/32,fd00:18:8::/45"
_NOTE = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" >"$RECORD/$$"
"""
STAND_INS = {
    "ping": f"{_NOTE}exit ${{PING_STATUS:-0}}\n",
    "ip": f"""{_NOTE}case "$*" in *route*) echo '[{{"dst":"203.0.113.47"}}]' ;; *) echo '[]' ;; esac\n""",
    "logger": _NOTE,
}


@dataclass(frozen=True)
class Stand:
    """A copy of the script whose PATH holds stand-ins only, and where they note what they were called with."""

    shell: tuple[str, ...]
    script: Path
    record: Path

    def run(
        self, lines: bytes | str, *arguments: str, timeout: float = 30, record: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Feed lines to it until their end."""
        argv = [*self.shell, str(self.script), *(arguments or ("--allow", ALLOWED))]
        data = lines if isinstance(lines, bytes) else lines.encode()
        where = {"RECORD": str(record or self.record), "PATH": "/usr/bin:/bin", **environment}
        return subprocess.run(argv, input=data, capture_output=True, timeout=timeout, env=where)

    def calls(self, record: Path | None = None) -> list[list[str]]:
        """What was called so far, in no order."""
        noted = [path.read_bytes() for path in (record or self.record).iterdir()]
        return [note.decode().split("\0")[:-1] for note in noted if note]  # one that has just begun is empty


def make_stand(directory: Path, shell: tuple[str, ...], *, most_kib: int = MOST_KIB, **programs: str) -> Stand:
    """Write the copy and the stand-ins; `programs` are more of them, or others in their place; "" is none."""
    tools, record = directory / "tools", directory / "record"
    for path in (directory, tools, record):
        path.mkdir(exist_ok=True)
    directory.chmod(0o755)
    record.chmod(0o777)
    for name, text in {**STAND_INS, **programs}.items():
        if text:
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
    text = SCRIPT.read_text()
    assert text.count("\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n") == 1
    script = directory / "do-failover-peer"
    assert f"ulimit -S -v {MOST_KIB} " in text
    text = text.replace(f"ulimit -S -v {MOST_KIB} ", f"ulimit -S -v {most_kib} ")
    script.write_text(text.replace("\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n", f"\nPATH={tools}\n"))
    script.chmod(0o755)
    return Stand(shell, script, record)


def frame(number: int, *sections: tuple[str, str]) -> str:
    """What it answers."""
    body = "\n".join(f"@do-failover {name}\n{text}" for name, text in sections)
    return f"do-failover-peer {number} 0\n{body}\ndo-failover-peer.\n"


def have(*programs: str) -> bool:
    """Tell whether these are installed."""
    return all(shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") for program in programs)


def answer(stand: Stand, lines: bytes | str, *arguments: str, **environment: str) -> str:
    """Return what it answered after its greeting."""
    done = stand.run(lines, *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith(GREETING)
    return text.removeprefix(GREETING)
