"""Search for settings of a recipe: Bayesian optimisation with Hyperband, as BOHB.

Vicente-Sola et al., sec. 3.5, searched leak, steps and learning rate so. Needs
``pip install 'snnkernels[search]'``.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import optuna
from optuna.trial import TrialState

from snnkernels.core.files import check_folder, write_whole
from snnkernels.train import runs
from snnkernels.train.parts import RecipeError, call
from snnkernels.train.recipe import Recipe, as_json, make_network, run

DATABASE, TABLE = "search.db", "search.csv"
NAME = "search"  # of the study in the database
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def number(trial: optuna.Trial, key: str, low: float, high: float, log: bool = False) -> float:
    """A number between two others.

    Args:
        trial: that it is for.
        key: its name.
        low: the smallest.
        high: the largest.
        log: draw its logarithm. Default: False.
    """
    return trial.suggest_float(key, low, high, log=log)


def whole(
    trial: optuna.Trial, key: str, low: int, high: int, step: int = 1, log: bool = False
) -> int:
    """A whole number, ``low`` and as many ``step`` as fit up to ``high``; else as `number`."""
    return trial.suggest_int(key, low, high, step=step, log=log)


def choice(trial: optuna.Trial, key: str, choices: list) -> Any:
    """One of some values."""
    return trial.suggest_categorical(key, choices)


def suggested(trial: optuna.Trial, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values of a trial for the keys of a space, see `search`.

    Raises:
        RecipeError: an option that is not known, missing or of the wrong type.
    """
    values = {}
    for key, options in space.items():
        kind = number
        if "choices" in options:
            kind = choice
        elif all(type(options.get(name)) is int for name in ("low", "high")):
            kind = whole
        values[key] = call(f"space {key}", kind, options, trial=trial, key=key)
    return values


def changed(recipe: Recipe, values: Mapping[str, Any], directory: Path) -> Recipe:
    """A recipe with other values.

    Args:
        recipe: stays as it is.
        values: by key; "network.decay" is the option ``decay`` of the part ``network``.
        directory: of the run.

    Raises:
        RecipeError: a key that no recipe has.
    """
    new = deepcopy(asdict(recipe)) | {"start": recipe.start, "trainer": recipe.trainer}
    for key, value in values.items():
        *parts, last = key.split(".")
        place = new
        for part in parts:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or (not parts and last not in place):
            raise RecipeError(f"space must have keys of the recipe or of its parts; got {key!r}")
        place[last] = value
    return replace(recipe, **new | {"directory": str(directory)})


class Report(L.Callback):
    """Tell the study the validation accuracy of every epoch; end a trial that is not worth more.

    Attributes:
        pruned: whether it was ended.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.pruned = False

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_last_batch:
            return
        epoch = trainer.current_epoch + 1
        self.trial.report(float(trainer.callback_metrics["val_accuracy"]), epoch)
        if epoch < trainer.max_epochs and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def search(
    recipe: Recipe,
    space: Mapping[str, Mapping[str, Any]],
    *,
    trials: int,
    seed: int = 0,
    fresh: bool = False,
    show: bool = True,
) -> optuna.Study | None:
    """Find settings with a high validation accuracy after the last epoch, or go on searching.

    Trials are drawn by TPE, and Hyperband ends those early that fall behind. All of it is kept in
    ``search.db`` and a folder for each trial in the recipe's directory, so that a search that was
    stopped goes on, with the same numbers. The test samples are not looked at.

    Args:
        recipe: of the trials; its validation must not be 0.
        space: what is searched: for a key such as ``network.decay`` or ``optimizer.lr`` either
            ``{low: 0.1, high: 1.0, log: false}`` or ``{choices: [1, 2]}``; whole numbers where both
            bounds are, with ``step``.
        trials: how many are made in all.
        seed: of the trials, and of every training. Default: 0.
        fresh: start anew, whatever lies in the directory. Default: False.
        show: print a line for each trial. Default: True.

    Returns:
        The study, or None where Ctrl-C stopped it.

    Raises:
        RecipeError: a recipe or space that is not allowed.
        OtherRunError: the directory holds a search with other settings.
    """
    if not space or recipe.validation == 0:
        raise RecipeError(
            "a search needs a space and validation samples; got "
            f"space={dict(space)} and validation={recipe.validation}"
        )
    directory = Path(recipe.directory)
    settings = {"recipe": as_json(recipe), "space": dict(space), "seed": seed}
    with quiet():
        tried = suggested(
            optuna.create_study().ask(), space
        )  # mistakes, before anything is written
        make_network(changed(recipe, tried, directory).network)
        check_folder(directory)
        if fresh:
            (directory / DATABASE).unlink(missing_ok=True)
        study = optuna.create_study(
            storage=f"sqlite:///{directory / DATABASE}",
            study_name=NAME,
            load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.HyperbandPruner(1, recipe.epochs, 3),
        )
        theirs = study.user_attrs.get("settings", settings)
        runs.check_settings(directory / DATABASE, theirs, settings)
        study.set_user_attr("settings", settings)
        while len(study.get_trials(deepcopy=False, states=DONE)) < trials:
            if not _one(study, recipe, space, seed, fresh, show):
                return None
            write_whole(directory / TABLE, _table(study).encode())
    return study


def _one(study: optuna.Study, recipe: Recipe, space, seed: int, fresh: bool, show: bool) -> bool:
    """Make a trial, or finish the one that was stopped; False where it was stopped."""
    stopped = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
    if stopped:
        trial = optuna.Trial(study, stopped[0]._trial_id)
    else:  # each from a seed of its own, so that a search in two parts draws as one does
        count = len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(multivariate=True, seed=seed * 100_003 + count)
        trial = study.ask()
    values = suggested(trial, space)
    report = Report(trial)
    folder = Path(recipe.directory) / f"trial-{trial.number}"
    options = {"seed": seed, "fresh": fresh and not stopped, "show": False, "test": False}
    result = run(changed(recipe, values, folder), callbacks=[report], **options)
    if result is None and not report.pruned:
        return False
    accuracy = None if result is None else result["epochs"][-1]["val_accuracy"]
    study.tell(trial, accuracy, state=TrialState.PRUNED if result is None else None)
    if show:
        said = "ended early" if accuracy is None else f"validation {accuracy:.2%}"
        given = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in values.items())  # fmt: skip
        print(f"trial {trial.number}: {given}: {said}")
    return True


def _table(study: optuna.Study) -> str:
    """All trials as CSV: number, state, epochs, validation accuracy, values."""
    text = io.StringIO()
    keys = sorted({key for trial in study.trials for key in trial.params})
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", "state", "epochs", "val_accuracy", *keys])
    for trial in study.trials:
        accuracy = trial.value if trial.value is not None else ""
        epochs = len(trial.intermediate_values)
        values = [trial.params.get(key, "") for key in keys]
        rows.writerow([trial.number, trial.state.name, epochs, accuracy, *values])
    return text.getvalue()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notes about every trial, and about what it calls experimental, away."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
