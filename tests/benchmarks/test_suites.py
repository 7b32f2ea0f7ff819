"""The benchmark suites at sizes that take no time: what they time is right, what they write whole.

No figure of theirs is looked at.
"""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bench import fuse, kernels, layers, peers, scaling
from bench.__main__ import SUITES, main
from snnkernels.backends import cpp_program
from snnkernels.backends.compiled_programs import find
from tests.tools.cases import BENCH_CASES

CASE = BENCH_CASES[0]._replace(steps=12, neurons=40)


def test_the_loop_over_indices_is_the_neuron():
    inputs = CASE.inputs()
    ours, grad = kernels.both_ways(
        lambda x: kernels.lif(x, CASE, inputs, "cpp")[0], inputs.x, inputs.ds
    )
    s, dx = kernels.both_ways(lambda x: kernels.indexed_loop(x, CASE, inputs), inputs.x, inputs.ds)
    assert torch.equal(s, ours) and torch.equal(dx, grad)


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_library_has_our_spikes(name):
    pytest.importorskip(name)
    x = torch.randn(20, 3, 16)
    ours = layers.providers()[0]["snnkernels"](0.5)
    assert torch.equal(peers.PEERS[name](0.5)(x), ours(x))


def test_every_provider_trains_a_layer():
    there, missing = layers.providers()
    rows = layers.measure(layers.Case("two layers", 6, 3, 8, 2, True), 0.0)
    assert [row["who"] for row in rows] == list(there) and not set(there) & set(missing)


def test_scaling_writes_what_it_measured_and_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "STEPS", (2, 4))
    monkeypatch.setattr(scaling, "peak", lambda *arguments: 1.0)
    arguments = ["bench", "scaling", "--neurons", "8", "--seconds", "0", "--limit", "1e-9"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path)])
    assert main() in (0, 3)
    (found,) = tmp_path.glob("*.json")
    results = json.loads(found.read_text())["results"]
    assert {row["T"] for row in results["rows"]} == {2}
    assert {row["reason"] for row in results["left_out"]} == {"more than 1e-09 s"}
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.md"))) == 1


@pytest.mark.parametrize("plain", (False, True))
def test_steps_are_timed_as_what_they_are_called(plain, monkeypatch):
    compiled = []

    def noted(*arguments):
        compiled.append(find(*arguments) is not None)
        return find(*arguments)

    cpp_program._lowered.cache_clear()
    monkeypatch.setattr(cpp_program, "find", noted)
    rows = fuse.rows(5, 128, 0.0, plain)
    assert ["compiled" in row["what"] for row in rows] == list(dict.fromkeys(compiled))


def test_an_unknown_suite_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "kernel"])
    assert main() == 2
    said = capsys.readouterr().err
    assert "'kernel'" in said and all(suite in said for suite in SUITES)
