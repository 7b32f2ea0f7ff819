"""The one timing mechanism, by a clock that the tests set."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from snnkernels.cli import _timing
from tests.benchmarks.ratios import ratios

ROOT = Path(__file__).resolve().parents[2]


class Machine:
    """Functions that take the seconds they are told, on a clock of their own."""

    def __init__(self, monkeypatch):
        self.now, self.order = 100.0, []
        monkeypatch.setattr(_timing.time, "perf_counter", lambda: self.now)

    def run(self, name: str, *seconds: float):
        """A function; its k-th call takes the k-th of ``seconds``, later ones the last."""
        left = list(seconds)

        def function() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return function


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_functions_take_turns_after_a_round_that_does_not_count(machine):
    runs = {"a": machine.run("a", 50.0, 2.0), "b": machine.run("b", 70.0, 1.0)}
    found = _timing.interleave(runs, rounds=3)
    assert machine.order == ["a", "b"] * 4
    assert found.seconds == {"a": [2.0] * 3, "b": [1.0] * 3}
    assert found.noise is None


def test_it_goes_on_as_long_as_it_is_told(machine):
    found = _timing.interleave({"a": machine.run("a", 1.0)}, seconds=7.5, rounds=2)
    assert len(found.seconds["a"]) == 8
    found = _timing.interleave({"a": machine.run("a", 1.0)}, seconds=0.5, rounds=2)
    assert len(found.seconds["a"]) == 2


def test_a_ratio_compares_runs_of_the_same_round(machine):
    """A machine that becomes three times as slow changes no ratio, but every median."""
    a = machine.run("a", 0.0, 2.0, 2.0, 6.0, 6.0, 6.0)
    b = machine.run("b", 0.0, 1.0, 1.0, 3.0, 3.0, 3.0)
    found = _timing.interleave({"a": a, "b": b}, rounds=5)
    assert found.median("a") == 6.0 and found.median("b") == 3.0
    assert found.ratio("a", "b") == 2.0 and found.spread("a", "b") == [2.0, 2.0]
    assert found.quartiles("b") == [1.0, 3.0, 3.0]


def test_the_spread_shows_what_the_median_hides(machine):
    a = machine.run("a", 0.0, 1.0, 2.0, 3.0)
    found = _timing.interleave({"a": a, "b": machine.run("b", 1.0)}, rounds=3)
    assert found.ratio("a", "b") == 2.0 and found.spread("a", "b") == [1.0, 3.0]


def test_a_function_against_itself_is_the_noise(machine):
    a = machine.run("a", 0.0, 2.0, 2.5, 2.0, 1.75)  # two runs a round; it does not matter which
    found = _timing.interleave({"a": a, "b": machine.run("b", 1.0)}, rounds=2, twice="a")
    assert machine.order == ["a", "b"] + ["a", "b", "a"] * 2
    assert found.seconds == {"a": [2.0, 2.0], "b": [1.0, 1.0]}
    assert found.again == [2.5, 1.75]
    assert found.noise == pytest.approx((0.25 + 1 / 7) / 2)


def test_a_clock_is_made_once_for_each_function_and_after_it_has_run():
    events = []

    def clock(run):
        events.append("made")
        return lambda: float(run())

    found = _timing.interleave({"a": lambda: events.append("ran") or 3}, rounds=2, clock=clock)
    assert events == ["ran", "made", "ran", "ran"]
    assert found.seconds == {"a": [3.0, 3.0]}


def test_the_wall_clock_counts_the_function_alone(machine):
    seconds = _timing.wall_clock(machine.run("a", 2.0))
    machine.now += 1.0
    assert [seconds(), seconds()] == [2.0, 2.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_clocks_of_the_device_see_its_kernels():
    small, large = (torch.empty(count, device="cuda") for count in (1 << 10, 1 << 28))
    runs = {"small": small.zero_, "large": large.zero_}
    for clock in (_timing.device_events, _timing.replayed_graph(), _timing.replayed_graph(True)):
        start = time.perf_counter()
        found = _timing.interleave(runs, clock=clock, twice="large")
        assert 0 < found.median("small") < found.median("large") < time.perf_counter() - start
        assert found.noise >= 0


def test_trees_are_compared_by_rows_that_both_have():
    """A process of `bench/compare_trees.py` knows the kernels and the ops of its own tree."""
    from bench.compare_trees import Process

    process = Process(ROOT, index=1)
    try:
        assert {"kernel, forward", "kernel, backward", "lif", "iir, learned"} < set(process.rows)
        assert all(process.seconds(row, 1) > 0 for row in process.rows)
    finally:
        process.end()


def stored(processor="a", **medians):
    """A file of pytest-benchmark."""
    found = [{"name": n, "stats": {"median": m, "iqr": m / 8}} for n, m in medians.items()]
    return {"machine_info": {"cpu": {"brand_raw": processor}}, "benchmarks": found}


def test_a_stored_baseline_is_compared_case_by_case():
    rows = ratios(stored(one=3.0, gone=1.0), stored(one=2.0, new=1.0))
    assert [(row["case"], row["baseline / now"], row["scatter"]) for row in rows] == [
        ("one", 1.5, 0.125)
    ]
    with pytest.raises(ValueError, match="of 'b', this machine is 'a'"):
        ratios(stored("b", one=1.0), stored(one=1.0))
    with pytest.raises(ValueError, match="no case is in both"):
        ratios(stored(one=1.0), stored(two=1.0))
