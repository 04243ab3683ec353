"""TCP connections from a peer or a jump host, over its open SSH connection (direct-tcpip channels).

A channel that opens after its caller has left is closed: the connection, and what others do on it, stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncssh

from do_failover.ssh.sentences import clean, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from do_failover.errors import PeerError
    from do_failover.ssh.login import Link

Channel = tuple[asyncssh.SSHTCPChannel[bytes], asyncssh.SSHTCPSession[bytes]]

# A SYN that got lost is sent again after 1 s. What accepted the connection gets as long to hang up by itself.
_ACCEPT_S, _LINGER_S = 2.5, 1.0


async def open_tcp_channel(
    link: Link, make_session: Callable[[], asyncssh.SSHTCPSession[bytes]], where: tuple[str, int], openings: set[asyncio.Task[Any]]
) -> Channel:
    """Open one. Until it is open or refused it stands in `openings`, also when the caller is cancelled. Raises asyncssh's errors."""
    opening = asyncio.create_task(link.connection.create_connection(make_session, *where))
    openings.add(opening)
    opening.add_done_callback(openings.discard)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_late)
        raise


def _close_late(opening: asyncio.Task[Channel]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        channel, _ = opening.result()
        channel.abort()


class _Probe(asyncssh.SSHTCPSession[bytes]):
    """Ignores what comes back."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncssh's signature
        self.ended.set()


async def send_from_peer(link: Link, label: str, where: tuple[str, int], data: bytes, openings: set[asyncio.Task[Any]]) -> bool:
    """Let a peer's sshd connect to an address and port, and send `data` there; tell whether somebody accepted within 2.5 s.

    Returns when that one has hung up, or after a second. Raises PeerError: "command" where sshd doesn't permit it,
    "unreachable" where the connection to the peer is lost.
    """
    probe = _Probe()
    try:
        async with asyncio.timeout(_ACCEPT_S):
            channel, _ = await open_tcp_channel(link, lambda: probe, where, openings)
    except TimeoutError:
        return False
    except (OSError, asyncssh.Error) as error:
        refusal = _describe_refusal(error, link, label, where)
        if refusal is None:
            return False
        raise refusal from error
    try:
        with contextlib.suppress(OSError, TimeoutError):  # it may have hung up at once
            async with asyncio.timeout(_LINGER_S):
                if data:
                    channel.write(data)
                channel.write_eof()
                await probe.ended.wait()
    finally:
        channel.abort()
    return True


def _describe_refusal(error: Exception, link: Link, label: str, where: tuple[str, int]) -> PeerError | None:
    """Return what keeps the peer from trying; None where it tried and nobody accepted."""
    if not link.is_open:
        return say(label, f"the connection was cut ({clean(str(error))}) before it could connect to {where[0]}", "unreachable")
    if isinstance(error, asyncssh.ChannelOpenError) and error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        host = f"[{where[0]}]" if ":" in where[0] else where[0]
        sentence = (
            f"its sshd does not permit a connection to {where[0]} port {where[1]}, so peers.probe proves nothing there: add "
            f'port-forwarding,permitopen="{host}:{where[1]}" to the options of our key in its authorized_keys'
        )
        return say(label, sentence, "command")
    return None
