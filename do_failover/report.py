"""Step 7: one FailoverReport, drafted while the story runs; text for a person, one line for the log.

The JSON form is the codec's; the history keeps it. Nothing here prints.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from do_failover.errors import FailoverError, SupersededError
from do_failover.model import (
    Decision,
    DecisionKind,
    FailoverReport,
    NotifyEvent,
    Outcome,
    PeerOutcome,
    PeerResult,
    ReportError,
    Stage,
    name_droplet,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from do_failover.clock import Clock

EXIT_DONE, EXIT_UNPROVEN = 0, 10
_ROWS_SHOWN = 12
_STAGES = ("identify", "assign", "owner", "announce", "refresh", "verify")  # the flow's order, whatever ended first


@dataclass(slots=True)
class OpenStage:
    """A step that is running: its tries and its sentence are filled in by the story."""

    name: str
    start_s: float
    attempts: int = 1
    detail: str = ""


@dataclass(slots=True)
class Draft:
    """The report while it is being written. Times count from `heard_at`, when the event was received."""

    clock: Clock
    heard_at: float
    id: str
    at: str
    node: str
    reserved_ip: str
    instance: str | None
    event: NotifyEvent | None
    round: int
    observe: Callable[[OpenStage | Stage], None]
    decision: Decision = field(default_factory=lambda: Decision(DecisionKind.ASSIGN, "nothing was decided"))
    droplet_id: int | None = None
    owner_before: int | None = None
    owner_after: int | None = None
    error: FailoverError | None = None
    api_calls: int = 0
    peers: tuple[PeerResult, ...] = ()
    warnings: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    def elapsed_s(self) -> float:
        """Return the seconds since the event was received."""
        return round(self.clock.now() - self.heard_at, 4)

    @contextmanager
    def stage(self, name: str) -> Iterator[OpenStage]:
        """Record a step's time line, also when it fails."""
        opened = OpenStage(name, self.elapsed_s())
        self.observe(opened)
        try:
            yield opened
        except FailoverError as error:
            opened.detail = opened.detail or error.message
            raise
        finally:
            closed = Stage(name, opened.start_s, self.elapsed_s(), opened.attempts, opened.detail)
            self.stages.append(closed)
            self.observe(closed)

    def finish(self) -> FailoverReport:
        """Return the report; outcome and exit code follow from the error and the peers' rows."""
        outcome, exit_code = judge(self.error, self.peers)
        error = self.error
        return FailoverReport(
            id=self.id,
            at=self.at,
            node=self.node,
            reserved_ip=self.reserved_ip,
            instance=self.instance,
            event=self.event,
            decision=self.decision.kind,
            reason=self.decision.reason,
            droplet_id=self.droplet_id,
            owner_before=self.owner_before,
            owner_after=self.owner_after,
            outcome=outcome,
            exit_code=exit_code,
            round=self.round,
            api_calls=self.api_calls,
            error=ReportError(error.kind, error.message, error.request_id) if error is not None else None,
            stages=tuple(sorted(self.stages, key=lambda stage: _STAGES.index(stage.name))),
            peers=self.peers,
            warnings=tuple(self.warnings),
        )


def judge(error: FailoverError | None, peers: tuple[PeerResult, ...]) -> tuple[Outcome, int]:
    """Return how a failover ended, and the exit code of the contract. A skipped peer was not asked: it doesn't count."""
    if error is not None:
        return (Outcome.SUPERSEDED if isinstance(error, SupersededError) else Outcome.FAILED), error.exit_code
    if all(peer.outcome in {PeerOutcome.HEALED, PeerOutcome.SKIPPED} for peer in peers):
        return Outcome.DONE, EXIT_DONE
    return Outcome.PARTIAL, EXIT_UNPROVEN


class Tone(StrEnum):
    """How a line of the text reads; a terminal may colour it."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report's text."""

    text: str
    tone: Tone = Tone.PLAIN


_TONES = {
    Outcome.DONE: Tone.GOOD,
    Outcome.PARTIAL: Tone.WARN,
    Outcome.SUPERSEDED: Tone.WARN,
    Outcome.FAILED: Tone.BAD,
}


def render_lines(report: FailoverReport) -> list[Line]:
    """Return the report as text: the verdict first, then one fact a line."""
    tone = _TONES[report.outcome]
    lines = [Line(f"{report.outcome.upper()}  {describe_outcome(report)}", tone), Line(f"  why       {report.reason}")]
    for stage in report.stages:
        tries = f" ({stage.attempts} tries)" if stage.attempts > 1 else ""
        lines.append(Line(f"  {stage.name:<9} {stage.start_s:6.2f} - {stage.end_s:6.2f} s  {stage.detail}{tries}"))
    if report.stages:
        calls = "1 call" if report.api_calls == 1 else f"{report.api_calls} calls"
        lines.append(Line(f"  api       {calls}"))
    lines += _render_peers(report.peers)
    lines += [Line(f"  warning   {warning}", Tone.WARN) for warning in report.warnings]
    if report.error is not None:
        request = f" (request {report.error.request_id})" if report.error.request_id else ""
        lines.append(Line(f"  error     {report.error.message}{request}", Tone.BAD))
    lines.append(Line(f"  record    {report.id}"))
    return lines


def describe_outcome(report: FailoverReport) -> str:
    """Return the one sentence that matters."""
    owner = name_droplet(report.owner_after)
    where = "this Droplet" if report.owner_after is not None and report.owner_after == report.droplet_id else owner
    if report.decision is DecisionKind.IGNORE:
        return f"{report.reserved_ip}: nothing to do"
    if report.outcome in {Outcome.FAILED, Outcome.SUPERSEDED} and report.error is not None:
        known = f"its last known owner is {where}" if report.owner_after is not None else "its owner is not known"
        return f"{report.reserved_ip}: {report.error.message.splitlines()[0]}; {known}"
    return f"{report.reserved_ip} is on {where}{count_peers(report.peers)}"


def count_peers(peers: tuple[PeerResult, ...]) -> str:
    """Return how many peers are proven to reach the reserved IP here."""
    asked = [peer for peer in peers if peer.outcome is not PeerOutcome.SKIPPED]
    if not asked:
        return "; no peer was asked" if peers else "; there is no peer to refresh"
    healed = sum(peer.outcome is PeerOutcome.HEALED for peer in asked)
    return f", and {healed} of {len(asked)} peers are proven to reach it there"


def _render_peers(peers: tuple[PeerResult, ...]) -> list[Line]:
    if not peers:
        return []
    counts = Counter(peer.outcome for peer in peers)
    lines = [Line("  peers     " + ", ".join(f"{counts[kind]} {kind}" for kind in PeerOutcome if counts[kind]))]
    trouble = [peer for peer in peers if peer.outcome is not PeerOutcome.HEALED]
    shown = list(peers) if len(peers) <= _ROWS_SHOWN else trouble[:_ROWS_SHOWN]
    width = max((len(peer.host) for peer in shown), default=0)
    for peer in shown:
        tone = {PeerOutcome.HEALED: Tone.PLAIN, PeerOutcome.SKIPPED: Tone.PLAIN}.get(peer.outcome, Tone.WARN)
        lines.append(Line(f"    {peer.host:<{width}}  {peer.outcome:<11}  {_describe_peer(peer)}".rstrip(), tone))
    if len(trouble) > len(shown):
        lines.append(Line(f"    ... and {len(trouble) - len(shown)} more that are not healed: see -o json", Tone.WARN))
    return lines


def _describe_peer(peer: PeerResult) -> str:
    facts = [f"{peer.duration_s:.2f} s"]
    if peer.witnessed:
        by_tcp = peer.proof is not None and peer.proof != "icmp"
        facts.append(f"what it sent by TCP ({peer.proof}) arrived here" if by_tcp else "its echo request arrived here")
    if peer.attempts > 1 and peer.measure is not None:
        facts.append(f"healed at {peer.measure}")
    if peer.on_link:
        facts.append("on the same link")
    if peer.acknowledged:
        facts.append("acknowledged")
    if peer.neighbour is not None:
        entry = peer.neighbour
        facts.append(f"{entry.address} is {entry.lladdr or 'unresolved'} {entry.nud or ''}".rstrip())
    if peer.error is not None:
        facts.append(peer.error)
    return "; ".join(facts)


def make_log_line(report: FailoverReport) -> str:
    """Return the failover as one line of key=value pairs, for syslog and the journal."""
    asked = [peer for peer in report.peers if peer.outcome is not PeerOutcome.SKIPPED]
    healed = sum(peer.outcome is PeerOutcome.HEALED for peer in asked)
    duration = max((stage.end_s for stage in report.stages), default=0.0)
    pairs = {
        "id": report.id,
        "reserved_ip": report.reserved_ip,
        "decision": report.decision,
        "outcome": report.outcome,
        "exit_code": report.exit_code,
        "owner": f"{report.owner_before}->{report.owner_after}",
        "healed": f"{healed}/{len(asked)}",
        "duration_s": f"{duration:.3f}",
        "reason": _quote(report.reason),
    }
    if report.error is not None:
        pairs["error"] = _quote(f"{report.error.kind}: {report.error.message}")
    return "failover " + " ".join(f"{key}={value}" for key, value in pairs.items())


def _quote(text: str) -> str:
    return '"' + " ".join(text.split()).replace('"', "'") + '"'
