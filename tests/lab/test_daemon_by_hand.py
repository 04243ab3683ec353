"""The daemon and people, on real parts: what it may do, whom it hears, what a person's move means, a configuration that changes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from do_failover.lab import files
from do_failover.lab.handle import LabHandle
from tests.lab.daemon_lab import (
    ACTION_S,
    BALANCERS,
    DROPLET,
    PROGRAM,
    acts,
    come_to_rest,
    mend,
    other_of,
    poll,
    posts,
    quick_lab,
    run_here,
    send_reload,
    wait_for_keeper,
)

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

PEERS = 3
CAP_NET_RAW = 1 << 13
ASK = """
import socket
sock = socket.socket(socket.AF_UNIX)
sock.connect("/run/do-failover/do-failover.sock")
try:
    sock.sendall(b'{"op": "order", "reserved_ip": "203.0.113.47"}\\n')
except BrokenPipeError:
    pass  # the refusal was quicker
print(sock.recv(9999))
"""
DAEMON = "$(cat /run/do-failover/daemon.lock)"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def standing() -> AsyncIterator[LabHandle]:
    async with quick_lab(PEERS, "settle_s = 0.1\nguard_s = 3\ngarp_interval_s = 0.05\n") as handle:
        yield handle


@pytest_asyncio.fixture(loop_scope="module")
async def lab(standing: LabHandle) -> LabHandle:
    await mend(standing, PEERS)
    return standing


async def run_tool(lab: LabHandle, node: str, arguments: str, *, uid: int = 0) -> tuple[int, str, str]:
    """Run do-failover in a node; return exit code, stdout, stderr."""
    who = f"setpriv --reuid {uid} --regid {uid} --clear-groups " if uid else ""
    script = f"{who}{PROGRAM} {arguments} >/run/log/tool.out 2>/run/log/tool.err; echo $?"
    code = await run_here(lab, node, script)
    log = lab.files(node) / "log"
    return int(code), (log / "tool.out").read_text(), (log / "tool.err").read_text()


async def test_the_daemon_has_one_capability_and_a_user_of_its_own(lab: LabHandle) -> None:
    for name in BALANCERS:
        lines = (await run_here(lab, name, f"cat /proc/{DAEMON}/status")).splitlines()
        fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(fields[key][0], 16) == CAP_NET_RAW, key
        assert fields["Uid"] == fields["Gid"] == [str(files.UID)] * 4
        assert (fields["Groups"], fields["NoNewPrivs"]) == ([], ["1"])
        modes = await run_here(lab, name, "stat -c '%a %U:%G' /run/lab/token /run/do-failover /run/do-failover/vrrp.fifo")
        assert modes.splitlines() == ["640 root:do-failover", "750 do-failover:do-failover", "660 root:do-failover"]


async def test_the_token_is_nowhere_but_in_its_file(lab: LabHandle) -> None:
    token = (await lab.state()).token
    for name in BALANCERS:
        assert token in (lab.files(name) / "lab/token").read_text()
        found = await run_here(lab, name, f"grep -rlaF --devices=skip {token} /run || true")
        assert found.split() == ["/run/lab/token"]
        shown = json.dumps([await lab.daemon(name), await run_tool(lab, name, "status -o json"), await lab.reports(name)])
        for place in ("cmdline", "environ"):
            shown += await run_here(lab, name, f"tr '\\0' ' ' < /proc/{DAEMON}/{place}")
        assert "203.0.113.47" in shown
        assert token not in shown


async def test_a_second_daemon_says_so_and_ends(lab: LabHandle) -> None:
    pid = await run_here(lab, "lb2", "cat /run/do-failover/daemon.lock")
    code, out, err = await run_tool(lab, "lb2", "daemon", uid=files.UID)
    assert (code, out) == (1, "")
    assert f"a daemon runs here already (process {pid}): two would fight; this one ends" in err
    assert await lab.daemon("lb2") is not None


async def test_assign_by_hand_goes_through_the_daemon_and_shows_its_stages(lab: LabHandle) -> None:
    master = await come_to_rest(lab)
    other = other_of(master)
    before, sent = len(await acts(lab, other)), len(await posts(lab))
    code, out, err = await run_tool(lab, other, "assign -o json")
    report = json.loads(out)
    assert (code, report["outcome"], report["owner_after"], report["event"]) == (0, "done", DROPLET[other], None)
    kept = await poll(lambda: acts(lab, other), lambda found: len(found) > before, "the daemon did not keep it")
    assert kept[before]["id"] == report["id"]
    assert report["id"] in await run_here(lab, other, "cat /run/log/daemon")
    assert (await posts(lab))[sent:] == [other]
    assert "VRRP says that INSTANCE VI_1 is BACKUP on this node" in err
    await lab.wait_for(lambda state: set(state.answers.values()) == {other}, "not everybody was healed")
    await wait_for_keeper(lab, master, lambda keeper: keeper["owner"] == DROPLET[other], "it did not notice")
    code, _, _ = await run_tool(lab, other, f"assign --to {DROPLET[master]}")
    assert code == 10
    assert await come_to_rest(lab) == master


async def test_an_order_shows_its_stages_while_they_run(lab: LabHandle) -> None:
    master = await come_to_rest(lab)
    await lab.set_action_time(1)
    reader, writer = await asyncio.open_unix_connection(lab.files(master) / "do-failover/do-failover.sock")
    order = {"op": "order", "reserved_ip": (await lab.state()).reserved_ip, "to_droplet": DROPLET[other_of(master)]}
    writer.write(json.dumps(order).encode() + b"\n")
    words = []
    while line := await reader.readline():
        ((word, value),) = json.loads(line).items()
        words.append((word, value.get("name")))
        if words[-1] == ("opened", "assign"):
            assert (await lab.state()).owner == master
    writer.close()
    stages = [name for word, name in words if word == "stage"]
    assert stages[:2] == ["identify", "assign"]
    assert set(stages[2:]) == {"refresh", "verify"}
    assert words[-1][0] == "report"
    await lab.set_action_time(ACTION_S)
    await lab.assign(master)
    assert await come_to_rest(lab) == master


async def test_nobody_but_root_and_its_own_user_may_ask_the_daemon(lab: LabHandle) -> None:
    node = other_of(await come_to_rest(lab))
    sent = len(await posts(lab))
    script = lab.files(node) / "log/ask.py"
    script.write_text(ASK)
    python = f"{sys.executable} /run/log/ask.py"
    as_nobody = await run_here(lab, node, f"setpriv --reuid 65534 --regid 65534 --clear-groups {python} 2>&1 || true")
    assert "PermissionError" in as_nobody
    in_group = await run_here(lab, node, f"setpriv --reuid 65534 --regid {files.UID} --clear-groups {python} 2>&1 || true")
    assert "user 65534 may not ask this daemon" in in_group
    code, out, _ = await run_tool(lab, node, "assign", uid=65534)
    assert code == 6
    assert "/run/lab/token cannot be read (Permission denied)" in out
    assert (await posts(lab))[sent:] == []


async def test_a_move_by_a_person_to_a_droplet_that_is_none_of_the_pair_is_left_there(lab: LabHandle) -> None:
    master = await come_to_rest(lab)
    await lab.assign("spare")
    await lab.wait_for(lambda state: state.owner_id == DROPLET["spare"], "it was not moved")
    sent = len(await posts(lab))
    keeper = await wait_for_keeper(lab, master, lambda keeper: keeper["why"].startswith("a person moved it"), "it was not understood")
    assert keeper["why"] == "a person moved it to Droplet 2001, which is none of the pair: left there until a new VRRP event"
    await lab.kill(master, "daemon")
    await lab.start(master, "daemon")
    await wait_for_keeper(lab, master, lambda keeper: keeper["why"].startswith("a person moved it"), "a restart forgot it")
    assert ((await posts(lab))[sent:], (await lab.state()).owner_id) == ([], DROPLET["spare"])
    new = other_of(master)
    await lab.make_master(new)
    assert await come_to_rest(lab) == new


async def test_a_broken_configuration_is_refused_and_the_old_one_stays(lab: LabHandle) -> None:
    new = other_of(await come_to_rest(lab))
    config = lab.files(new) / "lab/config.toml"
    good = config.read_text()
    try:
        config.write_text(good.replace('interface   = "eth0"', "interface   = 7").replace("guard_s = 3", "guard_s = -1"))
        await send_reload(lab, new)
        log = await run_here(lab, new, "cat /run/log/daemon")
        assert "the new configuration is refused; the old one stays in effect" in log
        assert "interface" in log
        assert "guard_s: -1" in log
        await lab.make_master(new)
        assert await come_to_rest(lab) == new
    finally:
        config.write_text(good)
    await send_reload(lab, new)
    assert "the configuration was read again: 203.0.113.47" in (await run_here(lab, new, "tail -n 3 /run/log/daemon"))


async def test_the_fan_out_list_is_followed_new_peers_are_armed_and_removed_ones_let_go(lab: LabHandle) -> None:
    node = await come_to_rest(lab)
    fan_out = lab.files(node) / "lab/peers"
    everybody = fan_out.read_text()
    count = "ss -tnH state established '( sport = :22 )' src " + "{} | wc -l"

    async def read_armed() -> dict[str, bool]:
        status = await lab.daemon(node)
        return {peer["host"]: peer["armed"] for peer in status["peers"]} if status is not None else {}

    async def count_on_app3() -> Any:
        return int(await run_here(lab, "app3", count.format("10.110.1.3")))

    assert await count_on_app3() == len(BALANCERS)
    fan_out.write_text(everybody.replace("app3\n", ""))
    try:
        await poll(read_armed, lambda found: found == {"app1": True, "app2": True}, "app3 was not let go", limit_s=5)
        await poll(count_on_app3, lambda found: found == 1, "sshd on app3 still has the connection", limit_s=5)
    finally:
        fan_out.write_text(everybody)
    await poll(read_armed, lambda found: found == dict.fromkeys(("app1", "app2", "app3"), True), "app3 was not armed", limit_s=5)
    assert await count_on_app3() == len(BALANCERS)
