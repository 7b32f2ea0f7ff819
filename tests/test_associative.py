"""The associative memory: its noise, its training, its command."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("lightning")

from snnkernels.__main__ import main  # noqa: E402
from snnkernels.associative import AssociativeMemory, Noise, corrupt, make_patterns  # noqa: E402
from snnkernels.models.iir_snn import IIRNetwork  # noqa: E402


def test_noise_does_what_it_says():
    patterns = make_patterns(4, 50, 400, rate=0.1)
    assert patterns.mean() == pytest.approx(0.1, abs=0.005)

    def noisy(**changes):
        quiet = Noise(deletion=0.0, jitter=0.0, background=0.0)
        return corrupt(patterns, quiet._replace(**changes), torch.Generator().manual_seed(1))

    assert torch.equal(noisy(), patterns)
    fewer = noisy(deletion=0.3)
    assert (fewer <= patterns).all() and fewer.sum() / patterns.sum() == pytest.approx(
        0.7, abs=0.02
    )
    more = noisy(background=0.05)
    assert (more >= patterns).all() and more.mean() == pytest.approx(0.145, abs=0.005)
    moved = noisy(jitter=1.0)
    assert 0.2 < (moved * patterns).sum() / patterns.sum() < 0.6
    assert moved.sum() / patterns.sum() == pytest.approx(0.95, abs=0.05)  # some meet


def test_training_brings_outputs_closer():
    patterns = make_patterns(3, 30, 40, rate=0.1)
    target = patterns.transpose(0, 1)
    module = AssociativeMemory(IIRNetwork((30, 60, 30)))
    optimizer = module.configure_optimizers()
    start = module.network.kernels(5)[0].clone()
    losses = []
    for _ in range(40):
        loss = module.training_step((target, target), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    s, distances = module.recall(target, patterns)
    assert s.shape == target.shape and distances.shape == (3, 3)
    own = torch.stack([module.distance(s, target, "none")])
    torch.testing.assert_close(distances.diagonal(), own[0])
    assert not torch.equal(module.network.kernels(5)[0], start)


@pytest.mark.slow
def test_the_command_runs(tmp_path, capsys):
    words = ["associative", "--epochs", "2", "--early", "1", "--batches", "1"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "closest to their own target" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["after"]) == {"1", "2"}
    assert {p.name for p in tmp_path.iterdir()} == {"rasters.png", "kernels.png", "result.json"}
