"""Says what went wrong on the way through the tree: one operator's sentence and one kind for each. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from do_failover.errors import PeerError
from do_failover.foreign import clean_text
from do_failover.peer_words import speaks_words, unwrap_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

COLD = 1  # the number of the only line on a peer's stdin
_MOST_KIB = 64
NOT_INSTALLED = (
    "ClusterShell is not installed, and peers.fanout is \"clustershell\": no peer is reached; pip install 'do-failover[clustershell]' "
    'into the environment that do-failover runs from, or set fanout = "ssh"'
)
CLOSED = "the run was over before it was told"


def say(host: str, sentence: str, kind: str) -> PeerError:
    """Return the error of that peer."""
    return PeerError(f"{host}: {sentence}", kind=kind)


def describe_start(told: Mapping[str, object], topology: str | None) -> str:
    """Say why ClusterShell could not begin."""
    said = clean_text(told.get("said")) or "it gave no reason"
    where = topology or "ClusterShell's topology.conf"
    match told.get("problem"):
        case "no topology":
            return f"there is no topology.conf ({said}), so no way to any peer is known; write one, or set peers.topology (docs/peers.md)"
        case "topology":
            root = clean_text(told.get("root")) or "this host's name"
            return (
                f"{where} can't be used ({said}), so no way to any peer is known; in its [routes] {root}, which is this host's name, "
                f"has to stand before a colon, and gateways behind it"
            )
        case "missing":
            return NOT_INSTALLED
        case _:
            return f"ClusterShell ended by itself ({said}), so nothing more is known of this peer; try `clush` by hand, or set peers.fanout"


def read_answer(host: str, told: Mapping[str, object], timeout_s: float) -> str:
    """Return what the peer wrote: do-failover-peer's answer, or a shell's. Raises PeerError."""
    gateway = clean_text(told.get("gateway"))
    said = clean_text(told.get("said"))
    match told.get("problem"):
        case None:
            return _read_output(host, told, gateway)
        case "time":
            by = f"by way of gateway {gateway} it" if gateway else "it"
            sentence = f"{by} was not done within {timeout_s:g} s and was told to end: the Droplet is down, hangs, or drops SSH"
            raise say(host, f"{sentence}{' from there' if gateway else ''}", "unreachable")
        case "no way":
            sentence = (
                f"none of its gateways can be used ({said or 'no reason given'}), so it was not told; see that they are up, and log in to "
                f"one by hand"
            )
            raise say(host, sentence, "unreachable")
        case "lost":
            because = f" ({said})" if said else ""
            sentence = f"its gateway {gateway} was lost{because}: whether this peer was told is unknown; look at that gateway"
            raise say(host, sentence, "unreachable")
        case "much":
            raise say(host, f"it wrote more than {_MOST_KIB} KiB; nothing of it was read", "command")
        case "name":
            raise say(host, "ClusterShell can't take this name for one host; list it by its address, or correct it", "command")
        case other:
            raise say(host, f"it failed in a way that has no name yet ({clean_text(str(other))}); report it", "unreachable")


def _read_output(host: str, told: Mapping[str, object], gateway: str | None) -> str:
    out, err = str(told.get("out", "")), str(told.get("err", ""))
    if speaks_words(out):
        answer = unwrap_answer(out, COLD)
        if answer is None:
            sentence = (
                "its key runs do-failover-peer only, which gave no answer: the command is none of its words, or it ended too early; "
                "look at that Droplet's log (journalctl -t do-failover-peer)"
            )
            raise say(host, sentence, "command")
        return answer
    if not out.strip() and err.strip():  # ssh's own words; its status doesn't come through
        raise _describe_ssh(host, err, gateway)
    return out


_REASONS = (
    (
        ("host key verification failed", "no matching host key", "host key is known"),
        "host_key",
        "{there} does not know this host key of it, so it is not trusted; compare it on the Droplet's console, then record it {in_file}",
    ),
    (
        ("permission denied", "too many authentication failures"),
        "refused",
        "it refused every key offered {by}; add the public key to that user's authorized_keys there, with the forced command",
    ),
    (
        ("could not resolve hostname",),
        "unreachable",
        "{there} does not resolve its name; list it by its address, or add it to {there}'s /etc/hosts",
    ),
    (("connection refused",), "unreachable", "it refused the connection {by}: sshd is not running there, or listens on another port"),
    (
        ("timed out", "no route to host", "network is unreachable"),
        "unreachable",
        "there is no way to it {by}: the Droplet is down, or a firewall drops SSH",
    ),
)


def _describe_ssh(host: str, err: str, gateway: str | None) -> PeerError:
    """Say what ssh's last line means. It is text of ssh's, and may hold the peer's banner: nothing is done with it but reading."""
    lines = [line for line in map(clean_text, err.splitlines()) if line]
    last = lines[-1] if lines else "without a word"
    words = {
        "there": f"gateway {gateway}" if gateway else "this host",
        "by": f"from gateway {gateway}" if gateway else "from here",
        "in_file": "in the known_hosts of that gateway's user" if gateway else "in peers.known_hosts",
    }
    for needles, kind, sentence in _REASONS:
        if any(needle in err.lower() for needle in needles):
            return say(host, f"{sentence.format_map(words)} (ssh: {last})", kind)
    return say(host, f"ssh {words['by']} failed ({last}); log in by hand from there", "unreachable")
