"""The words for do-failover-peer, and how its answers are found among what a peer wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from do_failover import peer_words, refresh
from do_failover.ssh.armed_loop import AnswerReader, make_nonce

PUBLIC, RESERVED, PATTERN = "198.51.100.12", "203.0.113.47", "00ff"
GREETING = "do-failover-peer hello\n"


def test_each_command_has_its_words_beside_it() -> None:
    assert refresh.make_look_command(PUBLIC, RESERVED).words == f"arm {PUBLIC} {RESERVED}"
    assert refresh.make_look_command(None, RESERVED).words == f"arm {RESERVED}"
    assert refresh.make_refresh_command(PUBLIC, RESERVED, PATTERN).words == f"refresh {PUBLIC} {RESERVED} {PATTERN}"
    assert refresh.make_refresh_command(None, "2001:DB8:0::5", "00FF").words == "refresh 2001:db8::5 00ff"
    assert refresh.make_neighbour_command(RESERVED).words == f"state {RESERVED}"
    assert refresh.make_silence_command(PUBLIC, RESERVED).words == f"silence {PUBLIC} {RESERVED}"


def test_to_everybody_else_it_is_the_command_itself() -> None:
    command = peer_words.PeerCommand("echo x", "state 203.0.113.47")
    assert command == "echo x"
    assert f"{command}" == "echo x"
    assert isinstance(command, str)


@pytest.mark.parametrize("bad", ["", "app1", "1.2.3", "1.2.3.4 5.6.7.8", "1.2.3.4\n2 arm", "fe80::1%x;id", "-f"])
def test_only_addresses_become_words(bad: str) -> None:
    for ask in (
        lambda: peer_words.ask_to_arm(bad),
        lambda: peer_words.ask_for_state(RESERVED, bad),
        lambda: peer_words.ask_who_is_silent(bad, RESERVED),
        lambda: peer_words.ask_to_refresh(bad, pattern=PATTERN),
    ):
        with pytest.raises(ValueError, match="."):
            ask()


@pytest.mark.parametrize("pattern", ["", "0", "zz", "00" * 17])
def test_a_pattern_is_1_to_16_bytes(pattern: str) -> None:
    with pytest.raises(ValueError, match="."):
        peer_words.ask_to_refresh(RESERVED, pattern=pattern)
    assert peer_words.ask_to_refresh(RESERVED, pattern="0a" * 16).endswith(" " + "0a" * 16)


def test_one_to_four_addresses() -> None:
    assert peer_words.ask_to_arm(*[RESERVED] * 4).count(RESERVED) == 4
    for count in (0, 5):
        with pytest.raises(ValueError, match="1 to 4"):
            peer_words.ask_to_arm(*[RESERVED] * count)


def frame(number: int, body: str) -> str:
    return f"do-failover-peer {number} 0\n{body}\ndo-failover-peer.\n"


def test_an_answer_is_found_by_its_number() -> None:
    text = GREETING + frame(2, "@do-failover kind\nplain") + frame(1, "@do-failover owner\n0\n@do-failover us\n1")
    assert peer_words.speaks_words(text)
    assert peer_words.unwrap_answer(text, 1) == "@do-failover owner\n0\n@do-failover us\n1"
    assert peer_words.unwrap_answer(GREETING + frame(1, ""), 1) == ""
    assert peer_words.split_sections(peer_words.unwrap_answer(text, 1) or "") == {"owner": "0", "us": "1"}


@pytest.mark.parametrize(
    "text", [GREETING, GREETING + "do-failover-peer 1 0\nhalf", GREETING + frame(2, "x"), GREETING + "do-failover-peer.\n"]
)
def test_an_answer_that_is_not_there_or_cut_is_none(text: str) -> None:
    assert peer_words.unwrap_answer(text, 1) is None


def test_a_shells_output_is_no_answer_of_its() -> None:
    assert not peer_words.speaks_words("@do-failover kind\nmarked\n")
    assert not peer_words.speaks_words(f"x{GREETING}")
    assert peer_words.speaks_words(f"Welcome\n{GREETING}")


def test_the_reader_of_the_loop_reads_the_script_too_however_its_bytes_come() -> None:
    data = f"Welcome\n{GREETING}{frame(7, 'a')}{frame(8, '')}".encode()
    reader = AnswerReader(make_nonce())
    answers = [answer for byte in data for answer in reader.feed(bytes([byte]))]
    assert answers == [(7, b"a"), (8, b"")]
    assert (reader.is_greeted, reader.speaks_words) == (True, True)


def test_a_loop_that_greets_by_its_nonce_speaks_no_words() -> None:
    nonce = make_nonce()
    reader = AnswerReader(nonce)
    answers = reader.feed(f"{nonce} hello\n{nonce} 1 0\n{GREETING}{frame(1, 'x')}\n{nonce}.\n".encode())
    assert (len(answers), reader.speaks_words) == (1, False)


@given(st.text(max_size=200), st.integers(0, 9))
def test_no_text_breaks_the_reader_of_a_cold_answer(text: str, number: int) -> None:
    assert peer_words.unwrap_answer(text, number) is None or "do-failover-peer" in text
    found = peer_words.unwrap_answer(GREETING + frame(number, text), number)
    assert found is None or found == text or "do-failover-peer" in text
