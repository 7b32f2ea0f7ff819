"""The recipes for time series: features, data sets, networks, and their commands."""

from __future__ import annotations

import json
import math
import signal
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from snnkernels import models
from snnkernels.models.iir_snn import SeriesLSTM, SeriesSNN
from snnkernels.nn.synapses import IIRSynapse
from snnkernels.train import data
from snnkernels.train.mfcc import cosine_transform, mel_filters, mfcc
from tests.train.files import RATE, spoken_digits, tone, write_wave

# --- features ------------------------------------------------------------------------------------


def test_mfcc_finds_the_band_of_a_tone():
    filters = mel_filters(256, 40, RATE)
    assert filters.shape == (40, 129) and filters.min() == 0 and filters.max() <= 1
    for frequency in (300, 1000, 3000):
        features = mfcc(tone(frequency), RATE, coefficients=40)
        bands = features @ cosine_transform(40, 40)  # its inverse: the rows are orthonormal
        expected = filters[:, round(frequency / RATE * 256)].argmax()
        assert abs(bands[5].argmax() - expected) <= 1
    assert features.shape == (1 + 1600 // 128, 40)


def test_mfcc_level_is_the_first_coefficient_alone():
    rows = cosine_transform(20, 40)
    torch.testing.assert_close(rows @ rows.T, torch.eye(20), atol=1e-6, rtol=0)
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    quiet, loud = mfcc(noise, RATE), mfcc(10 * noise, RATE)
    # 100 times the power in all 40 bands
    torch.testing.assert_close(
        loud[:, 0] - quiet[:, 0], torch.full((len(loud),), math.sqrt(40) * math.log(100))
    )
    torch.testing.assert_close(loud[:, 1:], quiet[:, 1:], atol=1e-3, rtol=0)
    assert mfcc(torch.zeros(10), RATE).isfinite().all()
    with pytest.raises(ValueError, match=r"wave must be floating point \[samples\].*\[2, 10\]"):
        mfcc(torch.zeros(2, 10), RATE)
    with pytest.raises(ValueError, match="wave must be floating point.*int16"):
        mfcc(torch.zeros(10, dtype=torch.int16), RATE)
    with pytest.raises(ValueError, match="hop must be at least one sample of rate = 8000; got 0.0"):
        mfcc(torch.zeros(10), RATE, hop=0.0)
    with pytest.raises(ValueError, match="coefficients must be 1 to bands = 40; got 41"):
        mfcc(torch.zeros(10), RATE, coefficients=41)


def mfcc_of_numpy(wave, rate: int, size: int, hop: int):
    """20 coefficients of 40 bands, with frequencies that numpy gives to the bins."""
    wave = np.pad(wave.astype(np.float64), size // 2)
    frames = np.stack([wave[i : i + size] for i in range(0, len(wave) - size + 1, hop)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2 / size
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, 42) / 2595) - 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    f = np.fft.rfftfreq(size, 1 / rate)
    mel = np.minimum((f - low) / (centre - low), (high - f) / (high - centre)).clip(0)
    k, n = np.arange(20)[:, None], np.arange(40)
    rows = np.cos(np.pi / 40 * (n + 0.5) * k) * np.where(k, np.sqrt(2 / 40), np.sqrt(1 / 40))
    return np.log(np.maximum(power @ mel.T, 1e-8)) @ rows.T


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050])
def test_mfcc_equals_numpy_for_even_and_odd_windows(rate):
    noise = 0.1 * torch.randn(rate // 2, generator=torch.Generator().manual_seed(0))
    expected = mfcc_of_numpy(noise.numpy(), rate, round(0.032 * rate), round(0.016 * rate))
    np.testing.assert_allclose(mfcc(noise, rate).numpy(), expected, atol=1e-3, rtol=0)


def test_mfcc_takes_no_default_dtype():
    wave = tone(440)
    expected = mfcc(wave, RATE)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(mfcc(wave, RATE), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# --- data sets -----------------------------------------------------------------------------------


@pytest.fixture
def vowels(tmp_path, monkeypatch) -> Path:
    """A package sktime with a few made-up series in place of the real ones."""
    folder = tmp_path / "sktime" / "datasets" / "data" / "JapaneseVowels"
    folder.mkdir(parents=True)
    (tmp_path / "sktime" / "__init__.py").write_text("raise RuntimeError('imported')")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("TRAIN", 3), ("TEST", 1)):
        lines = ["#a comment", "@dimensions 12", "@classLabel true 1 2 3 4 5 6 7 8 9", "@data"]
        for k in range(9 * count):
            label, steps = k // count + 1, 7 + k % 5
            series = torch.randn(12, steps, generator=generator) + label
            features = (",".join(f"{v:.6f}" for v in feature.tolist()) for feature in series)
            lines.append(":".join([*features, str(label)]))
        (folder / f"JapaneseVowels_{part}.ts").write_text("\n".join(lines) + "\n")
    monkeypatch.delitem(sys.modules, "sktime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_vowels_are_read_from_the_package(vowels):
    train, test, classes, _ = data.japanese_vowels()
    assert classes == 9 and train.x.shape == (27, 11, 12) and test.x.shape == (9, 11, 12)
    assert test.y.tolist() == list(range(9)) and train.y.bincount().tolist() == [3] * 9
    lengths = (~train.x.isnan()).sum(1)
    assert lengths[:, 0].tolist() == [7 + k % 5 for k in range(27)]
    assert (lengths == lengths[:, :1]).all()
    known = train.x[~train.x[..., 0].isnan()]
    torch.testing.assert_close(known.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(known.std(0), torch.ones(12))
    (vowels / "JapaneseVowels_TEST.ts").unlink()
    with pytest.raises(ModuleNotFoundError, match="sktime.*TRAIN.ts is not there.*pip install"):
        data.japanese_vowels()


@pytest.mark.skipif(find_spec("sktime") is None, reason="needs snnkernels[data]: sktime")
def test_the_real_vowels():
    train, test, _, _ = data.japanese_vowels()
    assert train.x.shape == (270, 29, 12) and train.y.bincount().tolist() == [30] * 9
    assert test.y.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    lengths = (~train.x[..., 0].isnan()).sum(1)
    assert lengths.min() == 7 and lengths[0] == 20


@pytest.fixture
def recordings(tmp_path) -> Path:
    """See `spoken_digits`."""
    pytest.importorskip("soundfile", reason="needs snnkernels[data]: soundfile")
    return spoken_digits(tmp_path / "recordings")


def test_recordings_are_read_and_split(recordings):
    train, test, classes, _ = data.spoken_digits(recordings, frames=12)
    assert classes == 10 and train.x.shape == (20, 12, 20) and test.x.shape == (10, 12, 20)
    assert test.y.tolist() == list(range(10)) and train.y.bincount().tolist() == [2] * 10
    assert (~test.x[..., 0].isnan()).sum(1).tolist() == [1 + 800 // 128] * 10
    assert not train.x[train.y == 0][1].isnan().any()  # 0.3 s, cut to 12 frames
    with pytest.raises(FileNotFoundError, match="DIGIT_SPEAKER_INDEX.wav.*nowhere"):
        data.spoken_digits(recordings / "nowhere")
    for path in recordings.glob("*_0.wav"):
        path.unlink()
    with pytest.raises(ValueError, match=r"indices below 5 \(test\).*got 0 and 20"):
        data.spoken_digits(recordings)
    write_wave(recordings / "seven.wav", tone(700))
    with pytest.raises(ValueError, match="named DIGIT_SPEAKER_INDEX.wav.*seven.wav"):
        data.spoken_digits(recordings)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "7_someone_1.wav").touch()
    with pytest.raises(ModuleNotFoundError, match="soundfile.*pip install"):
        data.spoken_digits(tmp_path)
    monkeypatch.setattr(data.series, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="sktime, which is not installed.*pip install"):
        data.japanese_vowels()


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [partial(SeriesSNN, scale=3.0), SeriesLSTM], ids=["snn", "lstm"])
def test_networks_see_no_padding(make):
    torch.manual_seed(0)
    series = [torch.randn(steps, 3) for steps in (4, 9, 6)]
    network = make(3, 5)
    padded = network(data.pad(series, 12))
    assert padded.shape == (3, 5) and padded.isfinite().all()
    assert not torch.equal(padded[0], padded[1])
    if make is SeriesLSTM:
        alone = network(series[2][None])
        torch.testing.assert_close(padded[2:], alone)
        return
    assert torch.equal(padded, padded.round())  # counts
    zeros = [torch.cat([s, torch.zeros(12 - len(s), 3)]) for s in series]
    assert torch.equal(padded, network(torch.stack(zeros)))
    padded.sum().backward()
    kinds = {name.rsplit(".", 1)[-1] for name, _ in network.named_parameters()}
    assert kinds == {"alpha", "beta", "weight"}
    fixed = SeriesSNN(3, 5, learn_filters=False)
    assert {name.rsplit(".", 1)[-1] for name, _ in fixed.named_parameters()} == {"weight"}


def test_filters_stand_before_the_weights_of_convolutions():
    def synapse(channels):
        return IIRSynapse.dual_exponential(4.0, 1.0, channels=channels)

    torch.manual_seed(0)
    options = {"input_shape": (2, 6, 6), "readout": "spikes", "v_threshold": 0.3}
    network = models.create("4C3-P2-6-3", synapse=synapse, **options)
    filters = [m for m in network.modules() if isinstance(m, IIRSynapse)]
    assert [len(m.alpha) for m in filters] == [2, 4, 6]
    network(torch.rand(20, 2, 2, 6, 6).round()).sum().backward()
    assert all(m.alpha.grad.abs().sum() > 0 for m in filters)


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def main():
    pytest.importorskip("lightning", reason="needs snnkernels[train]")
    from snnkernels.cli import main

    return main


def test_a_study_goes_on_where_it_was_stopped(vowels, tmp_path, monkeypatch, capsys, main):
    from snnkernels.cli import _series
    from snnkernels.train.module import SpikingClassifier

    monkeypatch.setattr(_series, "SEEDS", (0, 1))
    step, taken = SpikingClassifier.training_step, []

    def training_step(self, batch, index):
        taken.append(index)
        if len(taken) == stop_at:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, index)

    monkeypatch.setattr(SpikingClassifier, "training_step", training_step)
    words = ["japanese-vowels", "--epochs", "2", "--batch", "16", "--out"]
    stop_at = None
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*words, str(whole), "--network", "fixed"]) == 0
    assert len(taken) == 4  # 2 epochs of 2 steps
    taken.clear()
    stop_at = 7  # in the second of six trainings
    words = [*words, str(parts), "--study"]
    assert main(words) == 130
    assert "The same command goes on" in capsys.readouterr().out
    stop_at = None
    assert main(words) == 0
    assert len(taken) == 24  # none twice

    found = [json.loads((p / "fixed-0" / "result.json").read_text()) for p in (whole, parts)]
    assert found[0]["steps"] == found[1]["steps"] and len(found[0]["steps"]) == 4
    table = (parts / "study.md").read_text()
    assert table.count("±") == 3 and all(name in table for name in _series.NETWORKS.values())
    assert {p.name for p in (parts / "trained-1").iterdir()} == {
        *("result.json", "model.ckpt", "curves.png", "kernels.png")
    }
    assert (parts / "accuracy.png").stat().st_size > 5000
    assert main([*words, "--lr", "1"]) == 1
    assert "--fresh" in capsys.readouterr().err


def test_the_command_for_digits(recordings, tmp_path, capsys, main):
    words = ["spoken-digits", str(recordings), "--epochs", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--network", "fixed"]) == 0
    assert "20 training and 10 test series" in capsys.readouterr().out
    assert main(["spoken-digits", str(tmp_path / "nowhere")]) == 1
    assert "DIGIT_SPEAKER_INDEX.wav" in capsys.readouterr().err
