"""The story: one failover of one reserved IP, its steps in order under one deadline.

    event -> decision -> assign -> announce -> refresh -> verify -> report

What can overlap, overlaps: the peers are connected to while the API works, and each of them is
refreshed and proven on its own (I7). `run_failover` always returns a report: an error that ends the
story is in it, also one that nobody foresaw.
"""

from __future__ import annotations

import asyncio
import traceback
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from do_failover import announce, echo, frames, refresh, verify
from do_failover.assign import AFTERMATH_S, AssignRecord, Goal, assign_reserved_ip, check_owner_is_visible
from do_failover.clock import Deadline
from do_failover.decision import UNKNOWN, Owner, decide, decide_step
from do_failover.errors import ConfigError, DeadlineError, FailoverError, PeerError, PermanentError, SupersededError, TemporaryError
from do_failover.heal import Healer, cancel_all
from do_failover.model import Decision, DecisionKind, FailoverReport, Identity, Peer, ReservedIp, name_droplet
from do_failover.report import Draft
from do_failover.retry import Attempts, call_with_retries, finish_or_stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from do_failover.mandate import Mandate
    from do_failover.request import Edges, Request

_CONFIRM_S = 5.0
_HINT_LEAST_S, _HINT_MOST_S, _HINT_SHARE = 0.05, 0.2, 0.04  # a look costs 1 ms; what it finds late is a small part of the wait
_LOOK_AFTER_S = 0.01


async def run_failover(request: Request, edges: Edges, mandate: Mandate, observe: Callable[..., None]) -> FailoverReport:
    """Tell the story once, and return its report. Whatever goes wrong is in it."""
    draft = _start_draft(request, edges, observe)
    calls_before = edges.api.count_calls()
    story = _Story(request, edges, mandate, draft)
    telling = asyncio.create_task(story.tell())
    try:
        await asyncio.wait([telling])
    finally:
        await cancel_all([telling])
    error = None if telling.cancelled() else telling.exception()
    draft.error = error if isinstance(error, FailoverError) or error is None else _explain_unforeseen(error)
    draft.peers = tuple(verify.judge_peer(evidence, request.entry.reserved_ip) for evidence in story.evidence)
    draft.api_calls = edges.api.count_calls() - calls_before
    return draft.finish()


def _explain_unforeseen(error: BaseException) -> FailoverError:
    """Turn a mistake of ours into the report's error, with the place that a bug report needs."""
    trace = traceback.extract_tb(error.__traceback__)
    place = f" in {trace[-1].name} (line {trace[-1].lineno} of {Path(trace[-1].filename).name})" if trace else ""
    msg = f"a mistake in do-failover: {type(error).__name__}{place}: {error}"
    return FailoverError(msg, kind="internal")


def _start_draft(request: Request, edges: Edges, observe: Callable[..., None]) -> Draft:
    return Draft(
        clock=edges.clock,
        heard_at=request.heard_at,
        id=request.id,
        at=request.at,
        node=request.node,
        reserved_ip=request.entry.reserved_ip,
        instance=request.entry.vrrp_name,
        event=request.event,
        round=request.round,
        observe=observe,
        warnings=list(request.warnings),
    )


class _Story:
    """One run of the story; each method is one step, in the order of the file."""

    def __init__(self, request: Request, edges: Edges, mandate: Mandate, draft: Draft) -> None:
        self.request, self.edges, self.mandate, self.draft = request, edges, mandate, draft
        self.address = request.entry.reserved_ip
        self.deadline = Deadline.after(edges.clock, request.entry.deadline_s)
        self.evidence = [verify.PeerEvidence(peer, is_asked=False) for peer in request.peers]
        self.identity = Identity()
        self.target = request.to_droplet
        self.public: str | None = None
        self.region: str | None = None
        self.witness = verify.Witness(request.run)
        self.announcer: announce.Announcer | None = None
        self.shell: refresh.PeerShell
        self.looks: dict[Peer, asyncio.Task[refresh.PeerView]] = {}

    async def tell(self) -> None:
        """Take steps 2 to 6."""
        self.mandate.check()
        self.draft.decision = self.decide(UNKNOWN)
        if self.is_assigning and self.draft.decision.kind is DecisionKind.IGNORE:
            return
        async with AsyncExitStack() as stack:
            await self.identify()
            self.draft.decision = self.decide(UNKNOWN)
            await self.start_looking(stack)
            reserved = await self.assign()
            self.mandate.check()
            if self.target != self.identity.droplet_id or self.public is None:
                self.public = reserved.owner_public_address
            if reserved.droplet_id == self.identity.droplet_id:
                await self.open_link(stack)
            await self.announce_refresh_verify()

    @property
    def is_assigning(self) -> bool:
        """Tell whether the IP is to be moved, and not only looked at."""
        return "assign" in self.request.steps

    def decide(self, owner: Owner) -> Decision:
        """Decide with what is known of the owner."""
        if not self.is_assigning:
            return decide_step(" and ".join(sorted(self.request.steps)), owner=owner, target=self.target)
        return decide(self.request.event, owner=owner, target=self.target, evidence=self.request.evidence)

    async def identify(self) -> None:
        """Learn who this Droplet is; needed unless the IP goes to another one."""
        attempts = Attempts()
        with self.draft.stage("identify") as stage:
            try:
                self.identity = self.request.identity or await self._read_identity(attempts)
            except FailoverError:
                if self.request.to_droplet is None or self.mandate.is_revoked:
                    raise
            stage.attempts = max(1, attempts.count)
            self.draft.droplet_id = self.identity.droplet_id
            self.target = self.request.to_droplet or _require_droplet_id(self.identity.droplet_id)
            self.region = await self.find_region()
            stage.detail = f"this is Droplet {self.identity.droplet_id} in {self.identity.region}"
        is_v6 = ":" in self.address
        self.public = self.identity.public_address_v6 if is_v6 else self.identity.public_address

    async def _read_identity(self, attempts: Attempts) -> Identity:
        return await call_with_retries(
            self.edges.read_identity,
            deadline=self.deadline.no_later_than(0.0) if self.request.to_droplet else self.deadline,
            mandate=self.mandate,
            backoff=self.edges.backoff,
            attempts=attempts,
        )

    async def find_region(self) -> str | None:
        """Return the target's region: this Droplet's own, or what the API says of another one."""
        if self.target == self.identity.droplet_id:
            return self.identity.region
        found = await call_with_retries(
            lambda: self.edges.api.read_droplet(_require_droplet_id(self.target), max(0.5, self.deadline.remaining_s())),
            deadline=self.deadline,
            mandate=self.mandate,
            backoff=self.edges.backoff,
        )
        return found.region

    async def start_looking(self, stack: AsyncExitStack) -> None:
        """Connect to the peers and ask for their routes while the API works."""
        if not self.request.peers or not self.request.steps & {"refresh", "verify"}:
            return
        # A public address is known beforehand only when the IP comes to this Droplet.
        public = self.public if self.target == self.identity.droplet_id else None
        self.shell = await stack.enter_async_context(self.edges.open_peers())
        looking = {peer: asyncio.create_task(self._look_at(peer, public)) for peer in self.request.peers}
        stack.push_async_callback(cancel_all, looking.values())
        self.looks = looking

    async def _look_at(self, peer: Peer, public: str | None) -> refresh.PeerView:
        await self.edges.clock.sleep(_LOOK_AFTER_S)  # the first request to the API leaves before a thousand peers want the processor
        return await refresh.look_at_peer(self.shell, peer, public, self.address)

    async def assign(self) -> ReservedIp:
        """Make the target the owner; or, for a single step, only make sure that this Droplet is."""
        record = AssignRecord()
        with self.draft.stage("assign" if self.is_assigning else "owner") as stage:
            try:
                if self.is_assigning:
                    return await self._assign(record)
                reserved = await self.read_owner(self.deadline)
                record.before = reserved
                announce.check_ownership(reserved, self.target)
                return reserved
            finally:
                stage.attempts = max(1, record.attempts.count)
                stage.detail = record.describe()
                self.draft.owner_after = record.owner
                if record.before is not None:
                    self.draft.owner_before = record.before.droplet_id
                    self.draft.decision = self.decide(record.before.droplet_id)

    async def _assign(self, record: AssignRecord) -> ReservedIp:
        is_here, is_v6 = self.target == self.identity.droplet_id, ":" in self.address
        hint = self.identity.looks_like_owner_of(self.address) if self.identity.has_reserved_ip is not None else None
        goal = Goal(
            address=self.address,
            target=_require_droplet_id(self.target),
            region=self.region,
            has_anchor=self.identity.anchor_address is not None if is_here and self.identity.public_address and not is_v6 else None,
            # A person reads the owner first: before and after are worth a call, and nobody waits for milliseconds.
            is_surely_elsewhere=is_here and hint is False and self.request.event is not None,
            landing_s=min(AFTERMATH_S, self.request.entry.deadline_s / 8),
            contest=self.request.contest,
        )
        wake = asyncio.Event()
        watching = asyncio.create_task(self._watch_hint(wake)) if is_here and hint is False else None
        try:
            return await assign_reserved_ip(
                self.edges.api,
                goal=goal,
                deadline=self.deadline,
                mandate=self.mandate,
                backoff=self.edges.backoff,
                record=record,
                wake=wake,
            )
        finally:
            await cancel_all([watching] if watching is not None else [])

    async def _watch_hint(self, wake: asyncio.Event) -> None:
        """Wake the assign step as soon as the metadata service says that the IP is here: local, and cheaper than the API."""
        clock, begun = self.edges.clock, self.edges.clock.now()
        while True:
            await clock.sleep(min(_HINT_MOST_S, max(_HINT_LEAST_S, _HINT_SHARE * (clock.now() - begun))))
            try:
                found = await self.edges.read_identity()
            except TemporaryError:
                continue
            if found.looks_like_owner_of(self.address):
                wake.set()
                return

    async def read_owner(self, deadline: Deadline) -> ReservedIp:
        """Read the reserved IP, by the one retry policy."""
        reserved = await call_with_retries(
            lambda: self.edges.api.read_reserved_ip(self.address, max(0.5, deadline.remaining_s())),
            deadline=deadline,
            mandate=self.mandate,
            backoff=self.edges.backoff,
        )
        check_owner_is_visible(reserved)
        return reserved

    async def open_link(self, stack: AsyncExitStack) -> None:
        """Open the interface for the announcements and for the witness: the IP is here.

        The IP has moved by now: without the right to do this, the peers are refreshed all the same.
        """
        family: echo.Family = 6 if ":" in self.address else 4
        try:
            link = await stack.enter_async_context(self.edges.open_link())
            link.listen(echo.ECHO_ETHERTYPE[family], echo.build_echo_filter(family), self.witness.note_packet)
            constant = echo.build_constant_echo_filter(family)
            link.listen(echo.ECHO_ETHERTYPE[family], constant, self.witness.note_constant_echo)
            if (port := self.edges.probe_port) is not None:
                segments = echo.build_first_data_filter(family, port)
                link.listen(echo.ECHO_ETHERTYPE[family], segments, lambda packet: self.witness.note_segment(packet, port))
            announcer = announce.Announcer(link, self.mandate, tuple(filter(None, [self.public])))
            answers = frames.build_acknowledgement_filter(family, link.lladdr)
            note = announcer.note_acknowledgement
            link.listen(frames.ACKNOWLEDGEMENT_ETHERTYPE[family], answers, note, is_raw=True)
        except FailoverError as error:
            if not self.is_assigning or isinstance(error, SupersededError):
                raise
            self.draft.warnings.append(f"nothing is announced, and no peer can be proven healed: {error.message}")
            return
        self.witness.not_to = self.public
        self.announcer = announcer
        if "announce" in self.request.steps and await self.edges.is_on_link(self.address):
            announcer.include(self.address)

    async def announce_refresh_verify(self) -> None:
        """Announce, and beside it refresh and prove each peer; at the end, the owner once more.

        Ends early when the mandate or the time does.
        """
        work = [self._announce()] if self.announcer is not None and "announce" in self.request.steps else []
        if self.looks:
            work.append(self._refresh())
        with self.draft.stage("verify") as stage:
            try:
                tasks = [asyncio.create_task(step) for step in work]
                if not await finish_or_stop(tasks, deadline=self.deadline, mandate=self.mandate):
                    self.mandate.check()
                    self.draft.warnings.append("the deadline passed before every peer was refreshed")
                await self.confirm_owner()
            finally:
                stage.detail = self._describe_proof()

    async def _announce(self) -> None:
        announcer, entry = self.announcer, self.request.entry
        if announcer is None:
            return
        with self.draft.stage("announce") as stage:
            try:
                await announcer.announce(self.edges.clock, repeat=entry.garp_repeat, interval_s=entry.garp_interval_s)
            finally:
                stage.detail = f"{announcer.sent} frames so far, for {', '.join(announcer.addresses)}"
                if announcer.trouble is not None:
                    self.draft.warnings.append(f"not everything could be announced: {announcer.trouble}")

    async def _refresh(self) -> None:
        """Heal all peers side by side; cancelled, it cancels them."""
        healer = self._make_healer()
        with self.draft.stage("refresh") as stage:
            try:
                ended = await asyncio.gather(
                    *(healer.heal(evidence, self.looks[evidence.peer]) for evidence in self.evidence), return_exceptions=True
                )
                for evidence, error in zip(self.evidence, ended, strict=True):
                    if error is not None:  # one peer's answer that nobody foresaw is that peer's row (I7)
                        evidence.error = PeerError(f"{evidence.peer.host}: {_explain_unforeseen(error).message}", kind="command")
            finally:
                reached = sum(evidence.attempts > 0 for evidence in self.evidence)
                stage.detail = f"{reached} of {len(self.evidence)} peers were made to ping {self.public or 'nothing'} and {self.address}"

    def _describe_proof(self) -> str:
        owner = f"owner is {name_droplet(self.draft.owner_after)}"
        if not self.looks:
            return f"{owner}; no peer was asked"
        seen = sum(evidence.is_witnessed for evidence in self.evidence)
        acknowledged = sum(bool(evidence.acknowledged) for evidence in self.evidence)
        return f"{owner}; what {seen} of {len(self.evidence)} peers sent arrived here; {acknowledged} acknowledged"

    def _make_healer(self) -> Healer:
        return Healer(
            clock=self.edges.clock,
            shell=self.shell,
            witness=self.witness,
            announcer=self.announcer if "announce" in self.request.steps else None,
            lladdr=self.announcer.link.lladdr if self.announcer is not None else None,
            address=self.address,
            public=self.public,
            can_prove=self.announcer is not None and "verify" in self.request.steps,
            is_public_pinged="refresh" in self.request.steps,
            deadline=self.deadline,
            probe_port=self.edges.probe_port,
        )

    async def confirm_owner(self) -> None:
        """Read the owner once more: what was proven counts only while the IP is still there."""
        try:
            reserved = await self.read_owner(self.deadline.no_later_than(_CONFIRM_S))
        except (DeadlineError, PermanentError) as error:
            self.draft.warnings.append(f"the owner could not be read again at the end: {error.message}")
            return
        self.draft.owner_after = reserved.droplet_id
        if reserved.droplet_id != self.target:
            msg = (
                f"the owner changed to {name_droplet(reserved.droplet_id)} while the peers were refreshed: somebody moved "
                f"{self.address}; it is not taken back without a new VRRP event"
            )
            raise PermanentError(msg, kind="owner_changed")


def _require_droplet_id(droplet_id: int | None) -> int:
    if droplet_id is None:
        msg = "the metadata service names no Droplet id, and digitalocean.droplet_id is not set: this Droplet is unknown"
        raise ConfigError(msg, kind="identity")
    return droplet_id
