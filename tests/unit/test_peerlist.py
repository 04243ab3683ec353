from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from do_failover.model import Peer
from do_failover.peerlist import parse_peers

TEXT = """
# the web tier
app1
deploy@app2.internal   # with a user
10.110.0.3:2222
[2001:db8::5]:22
2001:db8::6
"""


def test_every_form() -> None:
    found = parse_peers(TEXT, "peers", ["app9"])
    assert found.nits == ()
    assert found.peers == (
        Peer(0, "app1"),
        Peer(1, "app2.internal", "deploy"),
        Peer(2, "10.110.0.3", None, 2222),
        Peer(3, "2001:db8::5"),
        Peer(4, "2001:db8::6"),
        Peer(5, "app9"),
    )


@pytest.mark.parametrize(
    "line", ["a b", "@host", "host:", "host:0", "host:65536", "-oProxyCommand=x", "a@b@c", "host:22:22x", "user@", "h;id"]
)
def test_a_bad_line_is_a_nit_and_the_others_count(line: str) -> None:
    found = parse_peers(f"app1\n{line}\napp2\n", "/etc/peers")
    assert [peer.host for peer in found.peers] == ["app1", "app2"]
    (nit,) = found.nits
    assert nit.startswith("/etc/peers:2: ")


def test_a_peer_listed_twice_is_kept_once() -> None:
    found = parse_peers("app1\nroot@app1\napp1:2222\n", "f")
    assert [(peer.host, peer.port, peer.user) for peer in found.peers] == [("app1", 22, None), ("app1", 2222, None)]
    assert len(found.nits) == 1


@given(st.text())
def test_no_text_raises(text: str) -> None:
    found = parse_peers(text, "f")
    assert [peer.number for peer in found.peers] == list(range(len(found.peers)))
    assert all(peer.host and not peer.host.startswith("-") for peer in found.peers)
