"""The daemon in thousands of histories: the invariants hold in each, and a broken variant of the code is caught."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.named_seeds import NAMED_SEEDS
from tests.sim.play import Played, play

TOP = Path(__file__).parents[2]
REPLAY = "scripts/test tests/sim --seed"
_MUTANT_SEEDS = 1500
_SHOWN = 3
_ENOUGH = 1000  # histories for a share of them to mean something


def explain(played: Played) -> str:
    assert played.broken is not None
    invariant, sentence = played.broken
    return f"seed {played.seed} breaks {invariant}: {sentence}\nreplay: {REPLAY} {played.seed}\n\n{played.history}"


def play_many(count: int) -> tuple[int, list[int], dict[str, int]]:
    """Play the seeds from 0 on all processors; return how many were played, which broke the law, and what they rested on."""
    workers = os.cpu_count() or 1
    commands = [[sys.executable, "-m", "tests.sim.play", str(first), str(count), str(workers)] for first in range(workers)]
    running = [subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True) for command in commands]
    answers: list[dict[str, Any]] = [json.loads(line) for process in running for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in running] == [0] * workers
    ends = [answer for answer in answers if "count" in answer]
    rests = {rest: sum(end["rests"].get(rest, 0) for end in ends) for end in ends for rest in end["rests"]}
    return sum(end["count"] for end in ends), sorted(answer["seed"] for answer in answers if "seed" in answer), rests


def test_the_invariants_hold_in_every_history(pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]) -> None:
    only = pytestconfig.getoption("seed")
    if only is not None:
        played = play(only)
        with capsys.disabled():
            sys.stdout.write(f"\n{played.history}\n")
        assert played.broken is None, explain(played)
        return
    wanted = pytestconfig.getoption("seeds")
    count, broken, rests = play_many(wanted)
    assert not broken, "\n\n".join(explain(play(seed)) for seed in broken[:_SHOWN])
    assert count == wanted
    assert count < _ENOUGH or rests["the"] > 0.9 * count, f"too many histories end in an exception, so that they show little: {rests}"


@pytest.mark.parametrize(("seed", "was"), NAMED_SEEDS, ids=[str(seed) for seed, _ in NAMED_SEEDS])
def test_what_was_found_once_stays_away(seed: int, was: str) -> None:
    played = play(seed)
    assert played.broken is None, f"{was}\n{explain(played)}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_broken_variant_is_caught_by_the_invariant_that_it_breaks(mutant: Mutant) -> None:
    with mutant.applied():
        found = (play(seed) for seed in range(mutant.begins_at, mutant.begins_at + _MUTANT_SEEDS))
        caught = next((played for played in found if played.broken is not None and played.broken[0] in mutant.breaks), None)
    assert caught is not None, f"{mutant.name}: nothing of {_MUTANT_SEEDS} seeds broke {sorted(mutant.breaks)}"
    assert caught.broken is not None
    assert caught.broken[1] in caught.history, "the history has to tell a person what was broken"
    assert play(caught.seed).broken is None, "the same seed keeps the law with the right code"


def test_every_invariant_has_a_broken_variant() -> None:
    assert set().union(*(mutant.breaks for mutant in MUTANTS)) == {"I1", "I2", "I3", "I4", "I5", "I6", "I7"}


@pytest.mark.parametrize("seed", [3, 14, 1182])
def test_one_seed_is_one_history(seed: int) -> None:
    first = play(seed)
    random.seed(99)
    assert play(seed).digest == first.digest
    for hash_seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-m", "tests.sim.play", str(seed)]
        shown = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True).stdout
        assert shown.startswith(first.history), "another process tells another history of the same seed"
    assert play(seed + 1).digest != first.digest


def test_the_histories_differ_and_something_happens_in_them() -> None:
    histories = [play(seed).history for seed in range(200)]
    assert len(set(histories)) == len(histories)
    told = "\n".join(histories)
    for word in (
        "MASTER_RX_LOWER_PRI",
        "is killed",
        "SIGTERM",
        "VRRP is cut",
        "takes effect",
        "is away",
        "a person",
        "the FIFO is full",
        "is off",
    ):
        assert word in told, f"{word}: it never happens in 200 histories"
