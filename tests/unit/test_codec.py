"""The JSON form of a report: the contract's names, and nothing lost on the way."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_report import make_report

from do_failover.codec import decode_report, encode_report
from do_failover.model import (
    DecisionKind,
    FailoverReport,
    Neighbour,
    NotifyEvent,
    NotifyType,
    Outcome,
    PeerOutcome,
    PeerResult,
    ReportError,
    Stage,
    VrrpState,
)

TEXT = st.text(max_size=40)
COUNT = st.integers(min_value=0, max_value=2**62)
SECONDS = st.floats(allow_nan=False, allow_infinity=False)
EVENTS = st.builds(NotifyEvent, st.sampled_from(NotifyType), TEXT, st.sampled_from(VrrpState), st.none() | COUNT)
REPORTS = st.builds(
    FailoverReport,
    id=TEXT,
    at=TEXT,
    node=TEXT,
    reserved_ip=TEXT,
    instance=st.none() | TEXT,
    event=st.none() | EVENTS,
    decision=st.sampled_from(DecisionKind),
    reason=TEXT,
    droplet_id=st.none() | COUNT,
    owner_before=st.none() | COUNT,
    owner_after=st.none() | COUNT,
    outcome=st.sampled_from(Outcome),
    exit_code=COUNT,
    round=COUNT,
    error=st.none() | st.builds(ReportError, TEXT, TEXT, st.none() | TEXT),
    stages=st.lists(st.builds(Stage, TEXT, SECONDS, SECONDS, COUNT, TEXT), max_size=3).map(tuple),
    peers=st.lists(
        st.builds(
            PeerResult,
            host=TEXT,
            outcome=st.sampled_from(PeerOutcome),
            on_link=st.none() | st.booleans(),
            neighbour=st.none() | st.builds(Neighbour, TEXT, st.none() | TEXT, st.none() | TEXT),
            acknowledged=st.none() | st.booleans(),
            witnessed=st.booleans(),
            duration_s=SECONDS,
            attempts=COUNT,
            error=st.none() | TEXT,
        ),
        max_size=3,
    ).map(tuple),
    warnings=st.lists(TEXT, max_size=3).map(tuple),
)


@given(REPORTS)
def test_codec_round_trip(report: FailoverReport) -> None:
    data = encode_report(report)
    assert decode_report(data) == report
    assert b"\n" not in data


@given(st.binary(max_size=200))
def test_codec_takes_any_garbage_for_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a failover report"):
        decode_report(data)


def test_codec_has_the_names_of_the_contract() -> None:
    document = json.loads(encode_report(make_report()))
    assert next(iter(document)) == "schema"
    assert document["schema"] == 1
    assert document.keys() >= {
        *("schema", "id", "at", "node", "reserved_ip", "instance", "event", "decision", "reason", "droplet_id"),
        *("owner_before", "owner_after", "outcome", "exit_code", "error", "stages", "peers"),
    }
    assert document["event"] == {"type": "INSTANCE", "name": "VI_1", "state": "MASTER", "priority": 150}
    assert (document["decision"], document["outcome"]) == ("assign", "partial")
    assert document["error"] == {"kind": "deadline", "message": "too late", "request_id": "req-1"}
    assert document["stages"] == [{"name": "assign", "start_s": 0.0, "end_s": 1.25, "attempts": 1, "detail": "assigned"}]
    peer = document["peers"][0]
    assert peer["neighbour"] == {"address": "10.0.0.1", "lladdr": "02:00:00:00:00:01", "nud": "REACHABLE"}
    assert peer.keys() >= {"host", "outcome", "on_link", "acknowledged", "witnessed", "duration_s", "error"}
    assert peer["outcome"] == "healed"


def test_codec_reads_on_when_fields_were_added_and_refuses_another_schema() -> None:
    document = json.loads(encode_report(make_report()))
    assert decode_report(json.dumps({**document, "later": [1]}).encode()) == make_report()
    with pytest.raises(ValueError, match="schema 2 is not known"):
        decode_report(json.dumps({**document, "schema": 2}).encode())


def test_codec_writes_a_name_that_is_not_unicode() -> None:
    event = NotifyEvent(NotifyType.INSTANCE, b"VI_\xff".decode(errors="surrogateescape"), VrrpState.MASTER)
    read = decode_report(encode_report(make_report(event=event)))
    assert read.event is not None
    assert read.event.name == "VI_\ufffd"
