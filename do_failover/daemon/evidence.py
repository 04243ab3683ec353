"""Why a MASTER may take a lost reserved IP back: what the API and most peers say of its owner (I6).

Guarantees: a peer confirms silence only when the owner's public address does not answer it while ours
does, so that a filter for ICMP is no evidence; most of all listed peers have to confirm. Everything found is one
sentence. Not guaranteed: that a silent owner is dead; that is why each evidence has a cool-off.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from do_failover import refresh
from do_failover.daemon.table import Evidence
from do_failover.errors import FailoverError, PeerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from do_failover.model import Action, Peer, ReservedIp
    from do_failover.request import Edges

_CALL_S = 5.0
Found = dict[Evidence, str]


async def examine(edges: Edges, peers: Sequence[Peer], seen: ReservedIp, *, public: str | None, last_action_id: int | None) -> Found:
    """Return the evidence for taking the IP back from another owner, each with its sentence."""
    found: Found = {}
    late = judge_newest(await _read_newest(edges, seen.address), last_action_id)
    if late is not None:
        found[Evidence.LATE_LANDING] = late
    if seen.droplet_id is not None and seen.owner_status not in {None, "active"}:
        found[Evidence.INACTIVE_OWNER] = f"the API calls its owner, Droplet {seen.droplet_id}, {seen.owner_status}"
    elif seen.owner_public_address is not None and public is not None:
        silence = await ask_peers(edges, peers, seen.owner_public_address, public)
        if silence is not None:
            found[Evidence.SILENT_OWNER] = silence
    return found


def judge_newest(newest: Action | None, last_action_id: int | None) -> str | None:
    """Say that the owner is the work of an action that is not younger than our own; None: it is younger, or nothing is known."""
    if newest is None or last_action_id is None or newest.id > last_action_id:
        return None
    return f"no action is younger than our own {last_action_id}: an older one landed after it"


async def ask_peers(edges: Edges, peers: Sequence[Peer], owner: str, public: str) -> str | None:
    """Let all peers ping the owner and us; return the sentence when most of them confirm the owner's silence."""
    if not peers:
        return None
    async with edges.open_peers() as shell:
        answers = await asyncio.gather(*(_ask(shell, peer, owner, public) for peer in peers))
    reached = sum(answer is not None for answer in answers)
    confirmed = sum(answer is True for answer in answers)
    if 2 * confirmed <= len(peers):
        return None
    return f"{confirmed} of {len(peers)} peers get no answer from its owner at {owner}, and do from here ({reached} were reached)"


async def _ask(shell: refresh.PeerShell, peer: Peer, owner: str, public: str) -> bool | None:
    try:
        return await refresh.is_silent(shell, peer, owner, public)
    except PeerError:
        return None


async def _read_newest(edges: Edges, address: str) -> Action | None:
    try:
        return await edges.api.read_newest_action(address, _CALL_S)
    except FailoverError:
        return None
