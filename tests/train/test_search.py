"""Searches: they go on where they were stopped, and look at validation samples alone."""

from __future__ import annotations

import json
import signal

import pytest

pytest.importorskip("snnkernels.train.module", reason="needs snnkernels[train]")
optuna = pytest.importorskip("optuna", reason="needs snnkernels[search]")

from snnkernels.cli import main  # noqa: E402
from snnkernels.train import runs  # noqa: E402
from snnkernels.train.module import SpikingClassifier  # noqa: E402
from snnkernels.train.parts import RecipeError  # noqa: E402
from snnkernels.train.recipe import Recipe  # noqa: E402
from snnkernels.train.search import changed, search  # noqa: E402
from tests.train import files  # noqa: E402

SPACE = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "network.steps": {"low": 1, "high": 3},
    "batch_size": {"choices": [20, 40]},
}


@pytest.fixture
def recipe(tmp_path):
    return Recipe(
        data={"name": "mnist", "folder": str(files.idx(tmp_path / "mnist"))},
        network={"name": "conv_snn", "channels": [2, 2]},
        directory=str(tmp_path / "run"),
        epochs=3,
        limit=60,
        validation=0.2,
    )


def trials(study):
    return [(t.number, t.state, t.params, t.intermediate_values) for t in study.trials]


def test_a_search_goes_on_where_it_was_stopped(recipe, tmp_path, monkeypatch, capsys):
    whole = search(recipe, SPACE, trials=4)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and all("optimizer.lr" in line for line in said)
    assert {t.params["batch_size"] for t in whole.trials} <= {20, 40}
    for path in (tmp_path / "run").glob(f"trial-*/{runs.RESULT}"):
        assert "test" not in json.loads(path.read_text())
    step, taken = SpikingClassifier.training_step, []

    def training_step(self, batch, index):
        taken.append(index)
        if len(taken) == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, index)

    monkeypatch.setattr(SpikingClassifier, "training_step", training_step)
    parts = changed(recipe, {}, tmp_path / "parts")
    assert search(parts, SPACE, trials=3, show=False) is None
    assert search(parts, SPACE, trials=3, show=False) is not None
    assert trials(search(parts, SPACE, trials=4, show=False)) == trials(whole)
    table = (tmp_path / "parts" / "search.csv").read_text().splitlines()
    assert table[0] == "trial,state,epochs,val_accuracy,batch_size,network.steps,optimizer.lr"
    assert len(table) == 5
    with pytest.raises(runs.OtherRunError, match="search.db.*seed=0 .now 1."):
        search(parts, SPACE, trials=4, seed=1)


def test_a_trial_that_falls_behind_is_ended(recipe, monkeypatch):
    log = SpikingClassifier.log

    def given(self, name, value, **options):
        steps = self.network.network.steps
        log(
            self,
            name,
            {1: 0.9, 2: 0.5, 3: 0.1}[steps] if name == "val_accuracy" else value,
            **options,
        )

    monkeypatch.setattr(SpikingClassifier, "log", given)
    study = search(recipe, {"network.steps": {"low": 1, "high": 3}}, trials=6, show=False)
    ended = {t.params["network.steps"] for t in study.trials if t.state.name == "PRUNED"}
    assert ended and 1 not in ended
    assert study.best_params == {"network.steps": 1}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "needs a space"),
        ({"network.decay": {"low": 0.1}}, "space network.decay.*high"),
        (
            {"network.decay": {"low": 0.1, "highest": 1}},
            "no option 'highest'; its options: low, high",
        ),
        ({"loss.tau": {"low": 0.1, "high": 1.0}}, "keys of the recipe.*got 'loss.tau'"),
        ({"speed": {"low": 0.1, "high": 1.0}}, "keys of the recipe.*got 'speed'"),
        ({"network.speed": {"low": 0.1, "high": 1.0}}, "conv_snn has no option 'speed'"),
    ],
)
def test_a_mistake_in_a_space(recipe, tmp_path, space, said):
    with pytest.raises(RecipeError, match=said):
        search(recipe, space, trials=1)
    assert not (tmp_path / "run").exists()


def test_validation_samples_are_needed(recipe):
    with pytest.raises(RecipeError, match="validation samples.*validation=0"):
        search(changed(recipe, {"validation": 0.0}, recipe.directory), SPACE, trials=1)


def test_the_command(recipe, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"directory: {recipe.directory}\nepochs: 1\nvalidation: 0.2\n"
        f"data: {json.dumps(recipe.data)}\nnetwork: {json.dumps(recipe.network)}\n"
        f"space: {json.dumps(SPACE)}\n"
    )
    assert main(["search", "--config", str(path), "--trials", "2"]) == 0
    said = capsys.readouterr().out
    assert "Best of 2 trials: validation" in said and "--optimizer.lr " in said
    assert "the best 2: optimizer.lr" in said
