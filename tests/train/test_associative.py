"""The associative memory: its noise, its training, its command."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("snnkernels.train.module", reason="needs snnkernels[train]")

from snnkernels.cli import main  # noqa: E402
from snnkernels.models.iir_snn import IIRNetwork  # noqa: E402
from snnkernels.nn.losses import van_rossum_distance  # noqa: E402
from snnkernels.nn.synapses import exponential  # noqa: E402
from snnkernels.train.associative import (  # noqa: E402
    NETWORK,
    AssociativeMemory,
    Noise,
    corrupt,
    make_patterns,
    noisy_data,
)


def test_noise_does_what_it_says():
    patterns = make_patterns(4, 50, 400, rate=0.1)
    assert patterns.mean() == pytest.approx(0.1, abs=0.005)

    def noisy(**changes):
        quiet = Noise(deletion=0.0, jitter=0.0, background=0.0, window=0.0, band=0.0)
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


def test_noise_erases_a_window_of_time_and_a_band_of_trains():
    full = torch.ones(6, 50, 40)
    quiet = Noise(deletion=0.0, jitter=0.0, background=0.0, window=0.0, band=0.0)
    starts = []
    for name, dim, size in (("window", 1, 10), ("band", 2, 8)):
        shown = corrupt(full, quiet._replace(**{name: 0.2}), torch.Generator().manual_seed(1))
        for sample in shown:
            gone = (sample == 0).all(2 - dim).nonzero()[:, 0].tolist()
            assert gone == list(range(gone[0], gone[0] + size))
            assert sample.sum() == sample.numel() * 0.8
            starts.append(gone[0])
    assert len(set(starts)) > 6


def test_training_brings_outputs_closer():
    torch.manual_seed(0)
    patterns = make_patterns(3, 30, 40, rate=0.1)
    data = noisy_data(patterns, Noise(0.0, 0.0, 0.0, 0.0, 0.0), versions=1, test_versions=1)
    assert data.train.x.dtype == torch.uint8 and torch.equal(data.train.x.float(), patterns)
    module = AssociativeMemory(IIRNetwork((30, 60, 30)), patterns, lr=0.1)
    optimizer = module.optimizer(module.parameter_groups())
    groups = optimizer.param_groups
    assert [(group["lr"], group["orthogonal"]) for group in groups] == [(0.1, True), (5e-4, False)]
    start = module.network.kernels(5)[0].clone()
    losses = []
    for _ in range(40):
        loss, scores = module.evaluate(*data.train)
        assert scores is None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    assert not torch.equal(module.network.kernels(5)[0], start)
    module.eval()
    with torch.no_grad():
        loss, scores = module.evaluate(*data.test)
        s = module(data.test.x)
    assert s.shape == (40, 3, 30) and scores.shape == (3, 3)
    torch.testing.assert_close(loss, -scores.diagonal().mean())
    for k in range(3):
        target = patterns[k].unsqueeze(1).expand(-1, 3, -1)
        expected = van_rossum_distance(s, target, *exponential(4.0), reduction="none")
        torch.testing.assert_close(-scores[:, k], expected)


def test_a_memory_recalls_what_the_noise_took():
    """Outputs nearer to their pattern than inputs that it has not seen; silence is farther."""
    torch.manual_seed(0)
    patterns = make_patterns(3, 60, 60)
    data = noisy_data(patterns, Noise(), versions=500, seed=1)
    module = AssociativeMemory(IIRNetwork((60, 120, 60), **NETWORK), patterns)
    optimizer = module.optimizer(module.parameter_groups())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 200)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = torch.randint(len(data.train.y), (32,), generator=generator)
        loss, _ = module.evaluate(data.train.x[batch], data.train.y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    module.eval()
    x, y = data.test
    with torch.no_grad():
        output = module.distance(module(x), y, "none")
        shown = module.distance(x.transpose(0, 1).float(), y, "none")
    print("RATIO", output.mean() / shown.mean())
    assert (output < shown).float().mean() >= 0.95
    assert output.mean() < 0.85 * shown.mean()


def test_noise_differs_between_versions():
    patterns = make_patterns(2, 20, 50, rate=0.1)
    data = noisy_data(patterns, Noise(), versions=3, test_versions=2, seed=1)
    assert data.train.y.tolist() == [0, 1] * 3 and data.test.y.tolist() == [0, 1] * 2
    shown = torch.cat([data.train.x, data.test.x])
    assert len(shown.flatten(1).unique(dim=0)) == len(shown) == 10
    assert torch.equal(noisy_data(patterns, Noise(), versions=3, seed=1).train.x, data.train.x)


def test_the_command_runs(tmp_path, capsys):
    words = ["associative", "--epochs", "2", "--early", "1", "--versions", "2", "--steps", "40"]
    words += ["--out", str(tmp_path)]
    assert main(words) == 0
    assert "closest to their own target" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["after"]) == {"1", "2"}
    assert {p.name for p in tmp_path.iterdir()} == {
        *("rasters.png", "kernels.png", "curves.png", "summary.json", "result.json", "model.ckpt"),
        *("recalled-1.pt", "recalled-2.pt"),
    }
    trained = (tmp_path / "model.ckpt").stat().st_mtime_ns
    assert main(words) == 0  # draws again, and trains no more
    assert (tmp_path / "model.ckpt").stat().st_mtime_ns == trained
    assert main([*words, "--early", "2"]) == 1
    assert "early=1 (now 2)" in capsys.readouterr().err
