"""The long sound: what it is made of, the command, and how its memory is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("snnkernels.train.module", reason="needs snnkernels[train]")

from snnkernels import checkpoint_time  # noqa: E402
from snnkernels.cli import main  # noqa: E402
from snnkernels.cli._memory import peak_mib  # noqa: E402
from snnkernels.train import stream  # noqa: E402


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tones_have_the_pitch_that_they_are_called_by():
    sound = stream.tones(3 * stream.LENGTH + 100, 2, seeded())
    assert sound.shape == (6100, 2, 2)
    for part, label in (piece.T for piece in sound[:6000, 0].split(2000)):
        assert (label == label[0]).all()
        pitch = int(torch.fft.rfft(part).abs().argmax()) * 8000 / 2000
        assert pitch == pytest.approx(100 * 1.35 ** int(label[0]), abs=4)
    assert torch.equal(stream.tones(6100, 2, seeded()), sound)


@pytest.fixture
def folder(tmp_path):
    """Ten recordings: five digits, each of 300 samples that are its number + 1, alternating."""
    soundfile = pytest.importorskip("soundfile", reason="needs snnkernels[data]: soundfile")
    sign = torch.tensor([1.0, -1.0]).repeat(150)
    for digit in range(5):
        for index in (0, 7):
            wave = (digit + 1) / 16 * sign * (1 if index else 0.5)
            soundfile.write(tmp_path / f"{digit}_someone_{index}.wav", wave.numpy(), 8000)
    return tmp_path


@pytest.mark.parametrize("test", [False, True])
def test_speech_is_one_recording_after_the_other(folder, test):
    draw = stream.speech(folder, test)
    x, y = draw(1000, 3, seeded()).unbind(-1)
    assert x.shape == (1000, 3) and (y < 5).all()
    for n in range(3):
        for start in range(0, 1000, 300):
            assert len(set(y[start : start + 300, n].tolist())) == 1
    torch.testing.assert_close(x.abs(), torch.ones_like(x), rtol=1e-2, atol=0)


def test_the_network_learns_in_chunks_what_it_learns_at_once():
    sound = stream.tones(600, 4, seeded())
    found = []
    for save, chunk in (("bits", 200), (None, None)):
        torch.manual_seed(0)
        network = stream.StreamNet(16, save=save)
        model = stream.Heard(network)
        loss, right = (
            model(sound) if chunk is None else checkpoint_time(model, sound, chunk, output="sum")
        )
        learned = list(model.parameters())
        found.append((loss, right, torch.autograd.grad(loss, learned)))
    (loss, right, learned), (want_loss, want_right, want_learned) = found
    said = network(sound[..., :1]).argmax(-1)
    assert right == want_right == (said == sound[..., 1]).sum()
    for got, want in zip([loss, *learned], [want_loss, *want_learned], strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_the_peak_of_memory_is_seen():
    def fill() -> None:
        torch.ones(64 << 20, dtype=torch.uint8)

    peak = peak_mib(fill)
    if peak is None:
        pytest.skip("peak memory is told by Linux only")
    assert 60 < peak < 80
    assert peak_mib(lambda: None) < 4


def test_without_a_way_to_tell_the_function_still_runs(monkeypatch):
    def refused(*_):
        raise PermissionError

    ran = []
    monkeypatch.setattr(Path, "write_text", refused)
    assert peak_mib(lambda: ran.append(1)) is None and ran == [1]


def test_the_command_runs(folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["stream", "--quick", "--steps", "300", "--width", "8", "--out", str(out)]
    assert main([*words, "--folder", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "4 streams of 300 steps: spoken digits from" in said and "pass 2: loss" in said
    assert "For 300 steps the loop needs" in said or "told by Linux only" in said
    result = json.loads((out / "stream.json").read_text())
    assert len(result["passes"]) == 2 and set(result["measured"]) == set(
        ("loop", "fused", "bits", "chunks")
    )
    assert (out / "memory.png").exists() == all(result["measured"].values())


def test_a_folder_without_recordings_is_named(tmp_path, capsys):
    assert main(["stream", "--out", str(tmp_path / "out"), "--folder", str(tmp_path)]) == 1
    assert f"found none in {tmp_path}" in capsys.readouterr().err
