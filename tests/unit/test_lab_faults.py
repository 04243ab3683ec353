"""The API's faults as words and as data: how they are read, and which request meets which."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from do_failover.lab import fault_text as ft
from do_failover.lab.fault_text import parse_faults
from do_failover.lab.faults import Delivery, Doorstep, FaultScript
from do_failover.lab.routes import Kind

# The words


@pytest.mark.parametrize(
    ("text", "method", "kind", "times"),
    [
        ("POST*2:503", "POST", None, 2),
        ("GET ip*1:hang-body", "GET", Kind.IP, 1),
        ("action:404", None, Kind.ACTION, 1),
        ("*:429 retry-after=2", None, None, 1),
        ("any**:ok", None, None, None),
        ("***:ok", None, None, None),
        ("**7:ok", None, None, 7),
        ("GET:500", "GET", None, 1),
        ("post**:errored", None, Kind.POST, None),
        ("  GET   list*3 : split  2 ", "GET", Kind.LIST, 3),
    ],
)
def test_which_requests_and_how_often(text: str, method: str | None, kind: Kind | None, times: int | None) -> None:
    (fault,) = parse_faults(text)
    assert (fault.method, fault.kind, fault.times) == (method, kind, times)


def test_a_script_is_split_at_semicolons_and_lines_and_keeps_its_words() -> None:
    assert [fault.text for fault in parse_faults("POST:503;  action**:404 \n\n *:latency   0.5;")] == [
        "POST:503",
        "action**:404",
        "*:latency 0.5",
    ]
    assert parse_faults("") == parse_faults(" ;\n") == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("503", "does not say which requests"),
        ("POST", "does not say which requests"),
        ("POST:", "there is no fault ''"),
        ("PUT:503", "does not say which requests"),
        ("POST*0:503", "does not say which requests"),
        ("POST*-1:503", "does not say which requests"),
        ("POST:5o3", "there is no fault '5o3'; there are ok"),
        ("POST:503 wildly", "'wildly' means nothing here"),
        ("POST:503 html json", "'json' means nothing here"),
        ("POST:latency", "latency needs a number: write latency 5"),
        ("POST:latency -1", "latency needs a number"),
        ("POST:latency nan", "latency needs a number"),
        ("*:hang-connect", "hang-connect needs a number"),
        ("*:hang-connect 1 after=2", "'after=2' means nothing here"),
        ("POST:hang-tls", "write \\*:hang-tls"),
        ("ip:reset-connect", "for any only"),
        ("*:slow 5", "write post:slow 5|only for the kind post"),
        ("GET:vanish", "only for the kind post"),
        ("*:split 2", "only for the kind list"),
        ("list:split 0", "whole number of items"),
        ("list:split 1.5", "whole number of items"),
        ("*:no-droplet", "only for the kind ip"),
        ("GET post:503", "no GET is of the kind post"),
        ("POST ip:503", "no POST is of the kind ip"),
        ("*:429 reset=soonish", "reset= needs seconds"),
        ("*:ok after=later", "after= needs seconds"),
        ("*:429 retry-after=", "retry-after= needs a value"),
        ("*:429 retry-after=\x01", "retry-after= needs a value"),
        ("POST:503; POST:nonsense", "'POST:nonsense': there is no fault"),
    ],
)
def test_a_mistake_is_said(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_faults(text)


_WORDS = st.sampled_from(
    [*ft.NAMES, "json", "landed", "burst", "hourly", "busy", "5", "0.5", "after=1", "retry-after=x", "reset=past", "x="]
)
_WHICH = st.sampled_from(["*", "any", "POST", "GET ip", "list", "action", "post", "", "PUT"])
_TIMES = st.sampled_from(["", "*2", "**", "*0", "*"])
_PLAUSIBLE = st.builds(lambda a, b, c: f"{a}{b}:{' '.join(c)}", _WHICH, _TIMES, st.lists(_WORDS, max_size=4))


@given(st.one_of(st.text(), st.lists(_PLAUSIBLE, max_size=4).map(";".join)))
@example("²*²:503")
@example("POST*٣:503")
@example("list:split ٣")
@example("\x85:\u2028:")
def test_any_text_is_read_or_refused_with_a_sentence(text: str) -> None:
    try:
        faults = parse_faults(text)
    except ValueError as error:
        assert type(error) is ValueError
        assert len(str(error)) > 20
        return
    script = FaultScript(faults)
    for fault in faults:
        assert fault.times is None or fault.times > 0
        assert parse_faults(fault.text) == (fault,)
        met = [script.meet(method, kind) for kind in Kind for method in ("GET", "POST")]
        assert fault in met or fault.effect.doorstep or script.doorstep_next or len(faults) > 1


def test_each_name_is_a_fault_of_its_own() -> None:
    words = {"latency": " 1", "hang-connect": " 1", "slow": " 1", "split": " 1"}
    which = {"split": "list", "no-droplet": "ip"} | dict.fromkeys(
        ("slow", "errored", "no-effect", "effect-errored", "done", "vanish", "endless"), "POST"
    )
    faults = [parse_faults(f"{which.get(name, '*')}:{name}{words.get(name, '')}")[0].effect for name in ft.NAMES]
    assert all(fault not in faults[:number] for number, fault in enumerate(faults))


# Which request meets which


def test_faults_apply_in_order_and_each_as_often_as_it_says() -> None:
    script = FaultScript(parse_faults("POST:503; POST*2:504; action:404; **2:500"))
    asked = [("POST", Kind.POST), ("GET", Kind.ACTION), ("POST", Kind.POST), ("GET", Kind.ACTION), ("POST", Kind.POST)]
    met = [script.meet(*request) for request in [*asked, ("GET", Kind.IP), ("GET", Kind.IP)]]
    texts = [fault.text if fault else None for fault in met]
    assert texts == ["POST:503", "action:404", "POST*2:504", "**2:500", "POST*2:504", "**2:500", None]


def test_an_unknown_request_meets_no_fault() -> None:
    assert FaultScript(parse_faults("***:503")).meet("GET", Kind.OTHER) is None


def test_a_connections_fault_waits_for_those_before_it() -> None:
    script = FaultScript(parse_faults("POST:503; *:hang-tls; *:hang-tls; GET:404"))
    assert (script.doorstep_next, script.meet_connection()) == (None, None)
    assert script.meet("GET", Kind.IP) is script.faults[3]
    assert script.meet("POST", Kind.POST) is script.faults[0]
    for _ in range(2):
        assert script.doorstep_next is Doorstep.HANG_TLS
        assert script.meet_connection() is not None
    assert (script.doorstep_next, script.meet_connection()) == (None, None)


def test_a_hang_lasts_for_ever_unless_it_says_how_long() -> None:
    assert [fault.effect.hang_s for fault in parse_faults("*:hang-tls; POST:hang-after 2; *:hang-connect 3")] == [math.inf, 2.0, 3.0]
    assert parse_faults("POST:hang-before")[0].effect.delivery is Delivery.HANG
