"""The assign step in virtual time against a scripted API: what is sent, what is believed, when it gives up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from do_failover.assign import AFTERMATH_S, AssignRecord, Contest, Goal, assign_reserved_ip
from do_failover.clock import Deadline
from do_failover.errors import ConfigError, DeadlineError, FailoverError, PermanentError, RefusedError, SupersededError, TemporaryError
from do_failover.mandate import Mandate
from do_failover.model import Action, ActionStatus, Refusal, ReservedIp
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
    actions: int = 6
    is_locked_shown: bool = True
    has_list: bool = True
    rival_s: float | None = None  # how long after our effect somebody else takes the IP back
    refusal: Refusal | None = None
    slow_down: float = 1.0

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
            if self.rival_s is not None and now - self.started >= effect_s + self.rival_s:
                self.owner, self.started = OLD, None
                self.actions += 1

    def _is_running(self) -> bool:
        return self.started is not None and asyncio.get_running_loop().time() - self.started < self.action_s

    async def read_reserved_ip(self, address: str, timeout_s: float) -> ReservedIp:
        assert (address, timeout_s > 0) == (IP, True)
        await self._call("GET ip")
        self._settle()
        owner = self.owner if self.is_owner_visible else None
        return ReservedIp(IP, self.region, owner, self.is_owner_visible, self.is_locked_shown and self._is_running())

    async def post_assign(self, address: str, droplet_id: int, timeout_s: float) -> Action:
        assert (address, droplet_id) == (IP, ME)
        assert self.owner != ME, "a POST after the API named us as owner"
        faults = self.faults.get("POST", [])
        if not faults or faults[0] is None or getattr(faults[0], "may_have_landed", False):
            self.started = asyncio.get_running_loop().time()
            self.actions += 1
        await self._call("POST")
        return Action(self.actions, ActionStatus.IN_PROGRESS)

    async def read_action(self, address: str, action_id: int, timeout_s: float) -> Action:
        await self._call("GET action")
        return Action(action_id, ActionStatus.IN_PROGRESS if self._is_running() else self.final_status)

    async def read_newest_action(self, address: str, timeout_s: float) -> Action | None:
        if not self.has_list:
            return None
        await self._call("GET actions")
        return Action(
            self.actions, ActionStatus.IN_PROGRESS if self._is_running() else self.final_status, "assign_ip", "2026-01-01T00:00:00Z"
        )

    async def explain_refusal(self, address: str, droplet_id: int, timeout_s: float) -> Refusal:
        await self._call("WHY")
        self._settle()
        return self.refusal or Refusal(None, ReservedIp(IP, self.region, self.owner))

    def poll_factor(self) -> float:
        return self.slow_down


@dataclass
class Scene:
    api: FakeApi
    record: AssignRecord = field(default_factory=AssignRecord)
    mandate: Mandate = field(default_factory=Mandate)
    contest: Contest = field(default_factory=Contest)
    result: ReservedIp | None = None
    ended_s: float = 0.0

    def play(
        self,
        *,
        deadline_s: float = 30,
        revoke_at: float | None = None,
        region: str | None = "nyc3",
        is_elsewhere: bool = False,
        wake_at: float | None = None,
        has_anchor: bool | None = None,
    ) -> Scene:
        async def scene() -> None:
            loop = asyncio.get_running_loop()
            if revoke_at is not None:
                loop.call_later(revoke_at, self.mandate.revoke, "superseded by INSTANCE VI_1 BACKUP")
            wake = asyncio.Event()
            if wake_at is not None:
                loop.call_later(wake_at, wake.set)
            try:
                self.result = await assign_reserved_ip(
                    self.api,
                    goal=Goal(IP, ME, region, has_anchor, is_elsewhere, self.contest),
                    wake=wake,
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
    assert "GET action" not in scene.api.log  # the lock and the owner tell
    assert scene.record.before is not None
    assert scene.record.before.droplet_id == before


def test_a_completed_action_with_the_wrong_owner_is_not_success() -> None:
    scene = Scene(FakeApi(has_effect=False))
    with pytest.raises(DeadlineError, match=r"the action \d+ is completed, but the owner of 203.0.113.47 is Droplet 1, not Droplet 2"):
        scene.play(deadline_s=20)
    assert scene.posts > 1
    assert scene.ended_s <= 20.5


def test_an_errored_action_that_moved_the_ip_is_success() -> None:
    scene = Scene(FakeApi(final_status=ActionStatus.ERRORED)).play()
    assert scene.result is not None
    assert scene.posts == 1


def test_an_action_that_is_never_found_is_settled_by_the_owner() -> None:
    faults: dict[str, list[FailoverError | None]] = {"GET action": [PermanentError("404", kind="not_found")]}
    scene = Scene(FakeApi(faults=faults, is_locked_shown=False)).play()
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


PENDING = TemporaryError("POST answered 422: Droplet already has a pending event.", kind="unprocessable", request_id="r-9")


def test_a_refused_post_is_explained_and_tried_again() -> None:
    scene = Scene(FakeApi(faults={"POST": [PENDING, PENDING]})).play()
    assert scene.result is not None
    assert scene.posts == 3
    assert scene.api.log.count("WHY") == 2


def test_the_reason_that_was_read_is_what_the_operator_reads() -> None:
    why = Refusal("203.0.113.47 is locked by action 5 (assign_ip, begun today)", ReservedIp(IP, "nyc3", OLD))
    scene = Scene(FakeApi(faults={"POST": [PENDING] * 99}, refusal=why))
    with pytest.raises(DeadlineError, match=r"locked by action 5 \(assign_ip, begun today\)") as caught:
        scene.play(deadline_s=10)
    assert caught.value.request_id == "r-9"


def test_refused_because_it_is_ours_is_success() -> None:
    scene = Scene(FakeApi(owner=OLD, faults={"POST": [PENDING]}, refusal=Refusal(None, ReservedIp(IP, "nyc3", ME)))).play()
    assert scene.result is not None
    assert scene.posts == 1


def test_a_refusal_that_nobody_can_wait_out_ends_the_round() -> None:
    why = Refusal("Droplet 2 already holds reserved IP 203.0.113.9", ReservedIp(IP, "nyc3", OLD), is_final=True)
    scene = Scene(FakeApi(faults={"POST": [PENDING]}, refusal=why))
    with pytest.raises(PermanentError, match="already holds reserved IP") as caught:
        scene.play()
    assert (caught.value.kind, scene.posts) == ("refused_assign", 1)


def test_a_droplet_without_an_anchor_ip_is_said() -> None:
    with pytest.raises(PermanentError, match="has no anchor IP"):
        Scene(FakeApi(faults={"POST": [PENDING]})).play(has_anchor=False)


def test_the_metadata_hint_chooses_the_first_call_only() -> None:
    assert Scene(FakeApi()).play(is_elsewhere=True).api.log[0] == "POST"
    wrong = Scene(FakeApi(faults={"POST": [PENDING]}, refusal=Refusal(None, ReservedIp(IP, "nyc3", ME)))).play(is_elsewhere=True)
    assert wrong.api.log == ["POST", "WHY"]
    with pytest.raises(ConfigError, match="is of region nyc3"):
        Scene(FakeApi(faults={"POST": [PENDING]})).play(is_elsewhere=True, region="ams3")


def test_a_wake_up_by_the_metadata_ends_the_wait() -> None:
    calm, woken = Scene(FakeApi(action_s=2.0)).play(), Scene(FakeApi(action_s=2.0)).play(wake_at=2.35)
    assert woken.ended_s <= 2.6
    assert calm.ended_s >= woken.ended_s


def test_near_the_rate_limit_polls_slow_down_and_the_post_does_not() -> None:
    calm, slow = Scene(FakeApi(action_s=8)).play(), Scene(FakeApi(action_s=8, slow_down=4.0)).play()
    assert slow.api.log[:2] == ["GET ip", "POST"]
    assert slow.api.log.count("GET ip") * 2 <= calm.api.log.count("GET ip")


def test_an_ip_that_somebody_keeps_taking_is_taken_back_once() -> None:
    scene = Scene(FakeApi(action_s=0.3, rival_s=0.0))
    with pytest.raises(PermanentError, match="somebody else wants it") as caught:
        scene.play(deadline_s=300)
    assert (caught.value.kind, scene.posts) == ("owner_changed", 2)
    again = Scene(FakeApi(action_s=0.3, rival_s=0.0), contest=scene.contest)
    with pytest.raises(PermanentError):
        again.play(deadline_s=300)
    assert again.posts == 1  # the next round of the same event begins with what was lost


def test_actions_without_effect_are_no_rival() -> None:
    scene = Scene(FakeApi(action_s=0.2, has_effect=False))
    with pytest.raises(DeadlineError):
        scene.play(deadline_s=60)
    assert scene.posts > 6


def test_without_a_list_of_actions_a_fight_is_bounded_too() -> None:
    scene = Scene(FakeApi(action_s=0.2, has_effect=False, has_list=False, is_locked_shown=False))
    with pytest.raises(PermanentError, match="somebody else wants it"):
        scene.play(deadline_s=600)
    assert scene.posts == 9


def test_a_post_without_an_answer_is_not_repeated_while_its_action_runs() -> None:
    faults: dict[str, list[FailoverError | None]] = {"POST": [unavailable(may_have_landed=True)]}
    scene = Scene(FakeApi(action_s=12.0, faults=faults)).play()
    assert scene.result is not None
    assert scene.posts == 1


def test_an_action_that_the_token_may_not_read_is_settled_by_the_owner() -> None:
    faults: dict[str, list[FailoverError | None]] = {"GET action": [RefusedError("403", kind="forbidden")] * 9}
    scene = Scene(FakeApi(is_locked_shown=False, faults=faults)).play()
    assert scene.result is not None


def test_hiccups_while_following_are_waited_out() -> None:
    faults: dict[str, list[FailoverError | None]] = {
        "GET action": [unavailable(), unavailable()],
        "GET ip": [unavailable(), None, unavailable()],
    }
    scene = Scene(FakeApi(faults=faults)).play()
    assert scene.result is not None
    assert scene.posts == 1


@pytest.mark.parametrize("name", ["GET ip", "POST"])
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


def test_superseded_during_a_post_that_hangs_the_end_comes_in_time() -> None:
    class Hanging(FakeApi):
        async def post_assign(self, address: str, droplet_id: int, timeout_s: float) -> Action:
            self.log.append("POST")
            await asyncio.sleep(timeout_s)
            raise unavailable(may_have_landed=True)

        async def read_reserved_ip(self, address: str, timeout_s: float) -> ReservedIp:
            if "POST" in self.log:
                await asyncio.sleep(timeout_s)
                raise unavailable()
            return await FakeApi.read_reserved_ip(self, address, timeout_s)

    scene = Scene(Hanging())
    with pytest.raises(SupersededError):
        scene.play(revoke_at=0.5, deadline_s=600)
    assert scene.ended_s <= 0.5 + AFTERMATH_S + 1


def test_actions_that_error_for_a_while_are_no_rival_without_a_list_either() -> None:
    scene = Scene(FakeApi(action_s=0.2, has_effect=False, has_list=False, is_locked_shown=False, final_status=ActionStatus.ERRORED))
    with pytest.raises(DeadlineError, match="is errored, but the owner"):
        scene.play(deadline_s=120)
    assert scene.posts > 9


def test_a_list_of_actions_that_may_not_be_read_is_waited_out_by_the_lock() -> None:
    class NoList(FakeApi):
        async def read_newest_action(self, address: str, timeout_s: float) -> Action | None:
            await self._call("GET actions")
            raise RefusedError("403", kind="forbidden")

    faults: dict[str, list[FailoverError | None]] = {"POST": [unavailable(may_have_landed=True)]}
    scene = Scene(NoList(action_s=6.0, faults=faults)).play()
    assert scene.result is not None
    assert scene.posts == 1


def test_a_wait_that_the_api_asks_for_between_polls_is_kept() -> None:
    limit = TemporaryError("429", kind="rate_limit", retry_after_s=7.0)
    scene = Scene(FakeApi(action_s=1.0, faults={"GET ip": [None, limit]})).play()
    assert scene.api.log.count("GET ip") == 3
    assert scene.ended_s >= 7.0
