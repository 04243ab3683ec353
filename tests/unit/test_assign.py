"""The assign step in virtual time against a scripted API: what is sent, what is believed, when it gives up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from do_failover.assign import AFTERMATH_S, AssignRecord, assign_reserved_ip
from do_failover.clock import Deadline
from do_failover.errors import ConfigError, DeadlineError, FailoverError, PermanentError, RefusedError, SupersededError, TemporaryError
from do_failover.mandate import Mandate
from do_failover.model import Action, ActionStatus, ReservedIp
from do_failover.retry import Backoff
from tests.virtual_time import VirtualClock, run_virtually

IP, OLD, ME = "203.0.113.47", 1, 2


@dataclass
class FakeApi:
    """An API whose every call takes 0.1 s; faults are popped one a call."""

    owner: int | None = OLD
    action_s: float = 1.5
    has_effect: bool = True
    final_status: ActionStatus = ActionStatus.COMPLETED
    effect_s: float | None = None
    is_owner_visible: bool = True
    region: str = "nyc3"
    faults: dict[str, list[FailoverError | None]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    started: float | None = None

    async def _call(self, name: str) -> None:
        self.log.append(name)
        await asyncio.sleep(0.1)
        script = self.faults.get(name, [])
        fault = script.pop(0) if script else None
        if fault is not None:
            raise fault

    def _settle(self) -> None:
        now = asyncio.get_running_loop().time()
        effect_s = self.action_s if self.effect_s is None else self.effect_s
        if self.started is not None and self.has_effect and now - self.started >= effect_s:
            self.owner = ME

    async def read_reserved_ip(self, address: str, timeout_s: float) -> ReservedIp:
        assert (address, timeout_s > 0) == (IP, True)
        await self._call("GET ip")
        self._settle()
        return ReservedIp(IP, self.region, self.owner if self.is_owner_visible else None, self.is_owner_visible)

    async def post_assign(self, address: str, droplet_id: int, timeout_s: float) -> Action:
        assert (address, droplet_id) == (IP, ME)
        assert self.owner != ME, "a POST after the API named us as owner"
        self.started = asyncio.get_running_loop().time()
        await self._call("POST")
        return Action(7, ActionStatus.IN_PROGRESS)

    async def read_action(self, address: str, action_id: int, timeout_s: float) -> Action:
        assert action_id == 7
        await self._call("GET action")
        assert self.started is not None
        is_over = asyncio.get_running_loop().time() - self.started >= self.action_s
        return Action(7, self.final_status if is_over else ActionStatus.IN_PROGRESS)


@dataclass
class Scene:
    api: FakeApi
    record: AssignRecord = field(default_factory=AssignRecord)
    mandate: Mandate = field(default_factory=Mandate)
    result: ReservedIp | None = None
    ended_s: float = 0.0

    def play(self, *, deadline_s: float = 30, revoke_at: float | None = None, region: str | None = "nyc3") -> Scene:
        async def scene() -> None:
            loop = asyncio.get_running_loop()
            if revoke_at is not None:
                loop.call_later(revoke_at, self.mandate.revoke, "superseded by INSTANCE VI_1 BACKUP")
            try:
                self.result = await assign_reserved_ip(
                    self.api,
                    address=IP,
                    target=ME,
                    region=region,
                    deadline=Deadline.after(VirtualClock(), deadline_s),
                    mandate=self.mandate,
                    backoff=Backoff(jitter=0.0),
                    record=self.record,
                )
            finally:
                self.ended_s = round(loop.time() - 1000.0, 2)

        run_virtually(scene())
        return self

    @property
    def posts(self) -> int:
        return self.api.log.count("POST")


def unavailable(**more: bool) -> TemporaryError:
    return TemporaryError("503", kind="unavailable", **more)


def test_already_ours_is_one_read_and_no_post() -> None:
    scene = Scene(FakeApi(owner=ME)).play()
    assert scene.api.log == ["GET ip"]
    assert scene.record.describe() == "owner Droplet 2; nothing was sent"


@pytest.mark.parametrize("before", [OLD, None])
def test_the_plain_move_ends_with_the_owner_read(before: int | None) -> None:
    scene = Scene(FakeApi(owner=before)).play()
    assert scene.result is not None
    assert scene.result.droplet_id == ME
    assert scene.posts == 1
    assert (scene.api.log[0], scene.api.log[1], scene.api.log[-1]) == ("GET ip", "POST", "GET ip")
    assert scene.record.before is not None
    assert scene.record.before.droplet_id == before


def test_a_completed_action_with_the_wrong_owner_is_not_success() -> None:
    scene = Scene(FakeApi(has_effect=False))
    with pytest.raises(DeadlineError, match=r"the action 7 is completed, but the owner of 203.0.113.47 is Droplet 1, not Droplet 2"):
        scene.play(deadline_s=20)
    assert scene.posts > 1
    assert scene.ended_s <= 20.5


def test_an_errored_action_that_moved_the_ip_is_success() -> None:
    scene = Scene(FakeApi(final_status=ActionStatus.ERRORED)).play()
    assert scene.result is not None
    assert scene.posts == 1


def test_an_action_that_is_never_found_is_settled_by_the_owner() -> None:
    faults: dict[str, list[FailoverError | None]] = {"GET action": [PermanentError("404", kind="not_found")]}
    scene = Scene(FakeApi(faults=faults)).play()
    assert scene.result is not None
    assert scene.posts == 1


def test_a_late_effect_is_waited_for_before_another_post() -> None:
    scene = Scene(FakeApi(action_s=0.2, effect_s=1.4)).play()
    assert scene.posts == 1


def test_a_post_without_an_answer_that_landed_is_not_repeated() -> None:
    faults: dict[str, list[FailoverError | None]] = {"POST": [unavailable(may_have_landed=True)]}
    scene = Scene(FakeApi(action_s=0.5, faults=faults)).play()
    assert scene.result is not None
    assert scene.posts == 1


def test_a_refused_post_is_repeated_after_reading_the_owner() -> None:
    pending = TemporaryError("Droplet already has a pending event.", kind="unprocessable")
    scene = Scene(FakeApi(faults={"POST": [pending, pending]}))
    scene.api.has_effect = True
    scene.api.effect_s = 1.0
    scene.play()
    assert scene.posts in {1, 2, 3}
    posts = [number for number, name in enumerate(scene.api.log) if name == "POST"]
    assert all("GET ip" in scene.api.log[first:second] for first, second in zip(posts, posts[1:], strict=False))


def test_hiccups_while_following_are_waited_out() -> None:
    faults: dict[str, list[FailoverError | None]] = {
        "GET action": [unavailable(), unavailable()],
        "GET ip": [unavailable(), None, unavailable()],
    }
    scene = Scene(FakeApi(faults=faults)).play()
    assert scene.result is not None
    assert scene.posts == 1


@pytest.mark.parametrize("name", ["GET ip", "POST", "GET action"])
def test_a_refused_token_ends_it_at_once(name: str) -> None:
    scene = Scene(FakeApi(faults={name: [RefusedError("401", kind="token")]}))
    with pytest.raises(RefusedError):
        scene.play()
    assert scene.ended_s < 1


def test_a_hidden_owner_is_not_called_unassigned() -> None:
    with pytest.raises(PermanentError, match="droplet:read"):
        Scene(FakeApi(is_owner_visible=False)).play()


def test_another_region_is_a_configuration_error_without_a_post() -> None:
    scene = Scene(FakeApi())
    with pytest.raises(ConfigError, match="is of region nyc3, Droplet 2 of ams3"):
        scene.play(region="ams3")
    assert scene.posts == 0


def test_the_deadline_ends_an_action_that_never_does() -> None:
    scene = Scene(FakeApi(action_s=1e9))
    with pytest.raises(DeadlineError, match="the action 7 is in-progress, but the owner"):
        scene.play(deadline_s=12)
    assert scene.posts == 1
    assert 12 <= scene.ended_s <= 12.5


def test_superseded_before_anything_sends_nothing() -> None:
    scene = Scene(FakeApi())
    with pytest.raises(SupersededError, match="BACKUP"):
        scene.play(revoke_at=0.05)
    assert scene.api.log == ["GET ip"]


def test_superseded_after_the_post_follows_it_to_its_end_and_sends_no_other() -> None:
    scene = Scene(FakeApi(action_s=4)).play(revoke_at=1)
    assert scene.result is not None
    assert scene.result.droplet_id == ME
    assert scene.posts == 1
    assert scene.record.owner == ME


def test_superseded_after_a_post_that_does_nothing_ends_without_another() -> None:
    scene = Scene(FakeApi(action_s=4, has_effect=False))
    with pytest.raises(SupersededError):
        scene.play(revoke_at=1, deadline_s=600)
    assert scene.posts == 1


def test_superseded_after_the_post_waits_ten_seconds_at_most() -> None:
    scene = Scene(FakeApi(action_s=1e9))
    with pytest.raises(SupersededError):
        scene.play(revoke_at=3, deadline_s=600)
    assert 3 + AFTERMATH_S <= scene.ended_s <= 3 + AFTERMATH_S + 1
    assert scene.posts == 1
