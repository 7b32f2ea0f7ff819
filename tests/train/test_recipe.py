"""Trainings by recipe: parts, transforms, losses, phases, studies."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest
import torch

pytest.importorskip("snnkernels.train.module", reason="needs snnkernels[train]")

import lightning as L  # noqa: E402

from snnkernels import models  # noqa: E402
from snnkernels.cli import main  # noqa: E402
from snnkernels.nn.encode import Count  # noqa: E402
from snnkernels.train import runs  # noqa: E402
from snnkernels.train.data import Samples  # noqa: E402
from snnkernels.train.losses import LOSSES  # noqa: E402
from snnkernels.train.parts import RecipeError, make  # noqa: E402
from snnkernels.train.recipe import Recipe, Start, build, make_network, run  # noqa: E402
from snnkernels.train.transforms import (  # noqa: E402
    TRANSFORMS,
    Crop,
    Flip,
    GaussianNoise,
    Inputs,
    normalise,
    statistics,
)
from snnkernels.train.weights import take_weights  # noqa: E402
from tests.train import files  # noqa: E402


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    return {"name": "mnist", "folder": str(files.idx(tmp_path_factory.mktemp("mnist")))}


NETWORK = {"name": "conv_snn", "channels": [4, 4], "steps": 3}


@pytest.fixture
def recipe(mnist, tmp_path):
    return Recipe(
        data=mnist,
        network=NETWORK,
        directory=str(tmp_path / "run"),
        epochs=2,
        transforms=[
            "normalise",
            {"name": "crop", "padding": 2},
            {"name": "noise", "deviation": 0.1},
        ],
        optimizer={"name": "adam", "lr": 5e-3},
        batch_size=20,
    )


# --- transforms ----------------------------------------------------------------------------------


def numbered(n=6, frames=2):
    """Sequences `[n, frames, 1, 5, 5]` in which every pixel is another number."""
    return torch.arange(1.0, 1 + n * frames * 25).view(n, frames, 1, 5, 5)


def test_statistics_are_the_channels():
    x = torch.randint(0, 256, (1100, 3, 2, 2), dtype=torch.uint8)
    x[:, 1] //= 2
    samples = Samples(x, torch.zeros(1100).long())
    mean, deviation = statistics(samples)
    expected = (x / 255.0).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean).double(), expected.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        torch.tensor(deviation).double(), expected.std(1, correction=0), atol=1e-6, rtol=0
    )
    out = Inputs([normalise(samples)])(x)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    counts = Samples(torch.full((3, 2, 2, 4, 4), 7, dtype=torch.int16), torch.zeros(3).long())
    assert statistics(counts)[0] == [7.0, 7.0]
    for options, said in (
        ({"mean": [0.0]}, "mean and deviation must both be given"),
        ({"mean": [0.0], "deviation": [1.0]}, "one number for each of 3 channels"),
        ({"mean": [0.0] * 3, "deviation": [1.0, 0.0, 1.0]}, r"deviation\[1\] must be.*> 0"),
    ):
        with pytest.raises(RecipeError, match=said):
            make("transforms", TRANSFORMS, {"name": "normalise", **options}, samples=samples)


def test_flips_mirror_whole_samples():
    x = numbered(200)
    out = Flip()(x)
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert (mirrored | (out == x).flatten(1).all(1)).all()
    assert 70 < mirrored.sum() < 130


def test_crops_shift_whole_samples():
    x = numbered(300)
    out = Crop(1)(x)
    wide = torch.nn.functional.pad(x, (1,) * 4)
    seen = set()
    for before, after in zip(wide, out, strict=True):
        places = [(r, c) for r in range(3) for c in range(3)
                  if torch.equal(before[..., r : r + 5, c : c + 5], after)]  # fmt: skip
        assert len(places) == 1
        seen |= set(places)
    assert len(seen) == 9


def test_noise_has_its_deviation():
    x = torch.full((100, 1, 20, 20), 0.9)
    noisy = GaussianNoise(0.2)(x)
    assert (noisy - x).std() == pytest.approx(0.2, rel=0.05)
    assert GaussianNoise(0.2, unit=True)(x).max() == 1


@pytest.mark.parametrize("module", [Flip(), Crop(1), GaussianNoise(0.1)], ids=str)
def test_evaluation_is_left_to_no_chance(module):
    assert torch.equal(module.eval()(numbered()), numbered())


def test_inputs_give_what_networks_take():
    images = torch.randint(0, 256, (4, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(Inputs([])(images), images / 255)
    coded = Inputs([], Count(3))(images)
    assert coded.shape == (3, 4, 1, 5, 5) and torch.equal(coded, Count(3)(images / 255))
    counts = torch.arange(4 * 2 * 9).view(4, 2, 1, 3, 3).to(torch.int16)
    assert torch.equal(Inputs([])(counts), counts.float().transpose(0, 1))


# --- losses --------------------------------------------------------------------------------------


def test_losses():
    labels = torch.tensor([1, 0])
    rates = torch.tensor([[0.2, 0.7, 0.1], [0.9, 0.0, 0.4]])
    target = torch.tensor([[0.0, 1, 0], [1, 0, 0]])
    loss, scores = LOSSES["mse"]()(rates, labels)
    assert float(loss) == pytest.approx(float((rates - target).square().sum(1).mean()))
    assert scores is rates
    p = rates.clamp(1e-3)
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert float(LOSSES["bce"]()(rates, labels)[0]) == pytest.approx(float(expected), rel=1e-5)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(rates, target)
    assert torch.equal(LOSSES["bce"](rates=False)(rates, labels)[0], expected)
    votes = torch.stack([rates - 1, rates + 1], 2).flatten(1)
    for loss, out in ((LOSSES["cross_entropy"](), rates), (LOSSES["cross_entropy"](2), votes)):
        value, scores = loss(out, labels)
        torch.testing.assert_close(value, torch.nn.functional.cross_entropy(rates, labels))
        torch.testing.assert_close(scores, rates)
    spikes = torch.zeros(6, 2, 3)
    spikes[1::2, 0, 1] = spikes[1::2, 1, 0] = 1
    loss, scores = LOSSES["van_rossum"](period=2)(spikes, labels)
    assert loss == 0 and scores.tolist() == [[0, 3, 0], [3, 0, 0]]
    assert LOSSES["van_rossum"](period=3)(spikes, labels)[0] > 0
    with pytest.raises(ValueError, match=r"spikes \[T, N, C\].*got \[2, 3\]"):
        LOSSES["van_rossum"]()(rates, labels)


# --- parts ---------------------------------------------------------------------------------------


def test_options_may_be_objects():
    part = {"name": "4C3-10", "input_shape": [1, 8, 8]}
    for given, shown in (({}, "Gaussian"), ({"name": "atan", "alpha": 3.0}, "ATan(alpha=3.0")):
        assert shown in repr(make_network(part | ({"surrogate": given} if given else {})))
    with pytest.raises(RecipeError, match="surrogate must be one of triangle.*got 'step'"):
        make_network(part | {"surrogate": "step"})
    with pytest.raises(RecipeError, match="cnn has no option 'surrogate'"):
        make_network({"name": "cnn", "surrogate": "atan"})


# --- trainings -----------------------------------------------------------------------------------


def test_a_recipe_is_trained_and_tested_once(recipe, tmp_path):
    result = run(recipe, show=False)
    assert len(result["epochs"]) == 2 and len(result["steps"]) == 2 * 5  # 90 in batches of 20
    assert result["epochs"][1]["train_loss"] < result["epochs"][0]["train_loss"]
    assert set(result["test"]) == {"test_loss", "test_accuracy"}
    assert json.loads((tmp_path / "run" / runs.RESULT).read_text())["test"] == result["test"]
    assert run(recipe, show=False) == result
    module, data = build(recipe)
    assert data.dataset.validation.y.bincount().tolist() == [1] * 10
    with pytest.raises(runs.OtherRunError, match="batch_size=20 .now 10."):
        run(replace(recipe, batch_size=10), show=False)
    with pytest.raises(RecipeError, match=r"network must give 10 outputs.*\[20, 7\]"):
        wrong = replace(recipe, network=NETWORK | {"num_classes": 7}, directory=str(tmp_path / "7"))
        run(wrong, show=False)


def test_the_best_epoch_is_chosen_by_validation(recipe, tmp_path, monkeypatch):
    from snnkernels.train.module import SpikingClassifier

    accuracies = iter([0.5, 0.9, 0.7])
    log = SpikingClassifier.log

    def given(self, name, value, **options):
        log(self, name, next(accuracies) if name == "val_accuracy" else value, **options)

    monkeypatch.setattr(SpikingClassifier, "log", given)
    states = []
    end = SpikingClassifier.on_validation_epoch_end

    def noted(self):
        states.append({k: v.clone() for k, v in self.network.state_dict().items()})
        end(self)

    monkeypatch.setattr(SpikingClassifier, "on_validation_epoch_end", noted)
    run(replace(recipe, epochs=3, keep="best", validation=0.3), show=False)
    kept = torch.load(tmp_path / "run" / runs.BEST, weights_only=True)["state_dict"]
    for name, value in states[1].items():
        assert torch.equal(kept[f"network.{name}"], value), name


def test_hybrid_training_begins_without_spikes(recipe, monkeypatch):
    from snnkernels.train.module import SpikingClassifier

    firing = []
    step = SpikingClassifier.training_step

    def training_step(self, batch, index):
        hybrid = [m for m in self.modules() if hasattr(m, "firing")]
        firing.append({m.firing for m in hybrid})
        return step(self, batch, index)

    monkeypatch.setattr(SpikingClassifier, "training_step", training_step)
    run(replace(recipe, epochs=3, hybrid=2, batch_size=45), show=False)
    assert firing == [{False}] * 4 + [{True}] * 2


class CtrlC(L.Callback):
    """Presses it in a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_any_stop_leaves_the_numbers_of_a_recipe(recipe, tmp_path):
    """Of its transforms, of its first phase without spikes, and of its best epoch."""
    recipe = replace(recipe, hybrid=1, keep="best", batch_size=45, epochs=3)
    whole = run(recipe, show=False)
    for step in (1, 2, 3):  # in the phase without spikes, at its end, and after it
        parts = replace(recipe, directory=str(tmp_path / str(step)))
        assert run(parts, show=False, callbacks=[CtrlC(step)]) is None
        torch.rand(3)
        result = run(parts, show=False)
        assert result["steps"] == whole["steps"] and result["test"] == whole["test"]


def test_weights_of_another_network():
    torch.manual_seed(0)
    ten, seven = (
        models.create("conv_snn", channels=(2, 2), num_classes=k, steps=2) for k in (10, 7)
    )
    head = next(n for n, m in ten.named_modules() if isinstance(m, torch.nn.Linear))
    before = {k: v.clone() for k, v in seven.state_dict().items()}
    with pytest.raises(RecipeError, match=rf"2 keys do not: {head}.bias, {head}.weight"):
        take_weights(seven, ten.state_dict())
    assert all(torch.equal(before[k], v) for k, v in seven.state_dict().items())
    first = next(n for n, m in ten.named_modules() if isinstance(m, torch.nn.Conv2d))
    left = take_weights(seven, ten.state_dict(), leave=[head], freeze=[first])
    assert left == [f"{head}.bias", f"{head}.weight"]
    for name, value in seven.state_dict().items():
        source = before if name in left else ten.state_dict()
        assert torch.equal(value, source[name]), name
    frozen = [name for name, p in seven.named_parameters() if not p.requires_grad]
    assert frozen == [f"{first}.weight", f"{first}.bias"]
    for options, said in (
        ({"leave": ["head"]}, "leave.*'head'"),
        ({"freeze": ["x"]}, "freeze.*'x'"),
    ):
        with pytest.raises(RecipeError, match=said):
            take_weights(seven, ten.state_dict(), **options)


def test_phases(recipe, tmp_path, capsys):
    """Features first, then the spiking network on them, frozen."""
    common = {"features": "cl", "in_channels": 1, "num_classes": 10, "size": 32, "steps": 2}
    two = replace(
        recipe,
        data={"name": "synthetic_sequences", "images": recipe.data, "kind": 4, "steps": 2},
        network={"name": "rsnn", "channels": 4, **common},
        transforms=[{"name": "tests.train.test_recipe.Pad"}],
        loss="cross_entropy",
        epochs=1,
        limit=20,
        validation=0.0,
        start=Start(
            recipe={"network": {"name": "rsnn_features", "readout": "sum", **common}},
            leave=["decision"],
            freeze=["features"],
        ),
    )
    result = run(two)
    assert result is not None
    said = capsys.readouterr().out
    assert "First rsnn_features" in said and "left out: decision.0" in said
    features, whole = (
        torch.load(tmp_path / "run" / place / runs.FINISHED, weights_only=True)["state_dict"]
        for place in ("start", "")
    )
    shared = [name for name in features if ".features." in name]
    assert shared and all(torch.equal(features[name], whole[name]) for name in shared)
    assert run(two, show=False) == result


class Pad(torch.nn.Module):
    """To 32 x 32 pixels."""

    def forward(self, x):
        return torch.nn.functional.pad(x, (2,) * 4)


def test_a_study_prints_mean_and_deviation(mnist, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"directory: {tmp_path / 'run'}\n"
        f"data: {json.dumps(mnist)}\nnetwork: {json.dumps(NETWORK)}\n"
        "epochs: 1\nbatch_size: 50\ntrainer: {log: csv}\n"
    )
    words = ["--config", str(path), "--network.steps", "2"]
    assert main(["fit", *words, "--seeds", "0", "1"]) == 0
    said = capsys.readouterr().out
    tests = [
        100
        * json.loads((tmp_path / "run" / f"seed-{k}" / runs.RESULT).read_text())["test"][
            "test_accuracy"
        ]
        for k in range(2)
    ]
    mean, deviation = sum(tests) / 2, abs(tests[0] - tests[1]) / 2**0.5
    assert said.rstrip().endswith(f"{mean:.2f} ± {deviation:.2f} |")
    assert (tmp_path / "run" / "study.md").read_text() in said
    assert list((tmp_path / "run" / "seed-0").glob("csv/*/metrics.csv"))

    words += ["--directory", str(tmp_path / "run" / "seed-1")]
    assert main(["test", *words]) == 0
    assert f"{tests[1]:.2f}% of the test samples are right" in capsys.readouterr().out
    assert main(["validate", *words]) == 0
    assert "of the validation samples" in capsys.readouterr().out
    assert main(["predict", *words]) == 0
    rows = (tmp_path / "run" / "seed-1" / "predictions.csv").read_text().splitlines()
    answers = [row.split(",")[:2] for row in rows[1:]]
    assert len(answers) == 20 and rows[0].startswith("label,answer,score_0")
    assert 5 * sum(a == b for a, b in answers) == pytest.approx(tests[1])
