"""A recipe: one training as plain words and numbers, which a YAML file or a command line holds."""

from __future__ import annotations

import inspect
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import nn

from snnkernels import models
from snnkernels.core import surrogates
from snnkernels.core.checks import check_share, check_whole, check_wholes
from snnkernels.nn.encode import CODES
from snnkernels.train import runs
from snnkernels.train.batches import InMemoryData
from snnkernels.train.callbacks import Best, Hybrid
from snnkernels.train.data import DATASETS, Dataset, hold_out, limited
from snnkernels.train.fit import TrainerOptions, fit_once, quiet
from snnkernels.train.losses import LOSSES
from snnkernels.train.module import SpikingClassifier
from snnkernels.train.parts import RecipeError, call, find, make
from snnkernels.train.processes import rank
from snnkernels.train.schedules import SCHEDULES
from snnkernels.train.transforms import TRANSFORMS, Inputs
from snnkernels.train.weights import take_weights

SURROGATES = {kind.__name__.lower(): kind for kind in surrogates.SURROGATES}
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
APART = ("directory", "epochs")  # of the settings: the place of a run, and what `fit` adds


@dataclass
class Start:
    """Weights that a network begins with.

    Args:
        recipe: what another recipe has to say: it is this one with these keys in place of its own,
            and is trained first, in the folder ``start`` of the directory. Default: None.
        weights: a checkpoint of a finished run, or a file with a ``state_dict``, instead.
        leave: modules whose weights stay as they are, such as another head; all others must fit.
        freeze: modules whose weights are not trained.
    """

    recipe: dict[str, Any] | None = None
    weights: str | None = None
    leave: list[str] = field(default_factory=list)
    freeze: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = [name for name in ("recipe", "weights") if getattr(self, name) is not None]
        if len(given) != 1 and (given or self.leave or self.freeze):
            raise RecipeError(
                "start must have a recipe or weights, and may then have modules to leave and to "
                f"freeze; got {self}"
            )
        known = {f.name for f in fields(Recipe)} - {"start", "directory", "trainer"}
        if unknown := set(self.recipe or ()) - known:
            raise RecipeError(
                f"start.recipe must have keys of {', '.join(sorted(known))}; "
                f"got {', '.join(sorted(unknown))}"
            )


@dataclass
class Recipe:
    """What to train, on what, and how.

    A part, such as the network, is a name with options: ``{name: conv_snn, channels: [48, 48]}``.
    A name with dots is a class of one's own: ``{name: my_package.MyNet}``.

    Args:
        data: a set of `snnkernels.train.data.DATASETS`.
        network: of `snnkernels.models.create`; its surrogate, where it has one, is a part too, of
            `SURROGATES`.
        directory: of what the run writes.
        epochs: passes over the training samples.
        transforms: done to every batch, of `snnkernels.train.transforms.TRANSFORMS`.
        code: from values to a sequence of steps, of `snnkernels.nn.encode.CODES`.
        loss: of `snnkernels.train.losses.LOSSES`.
        optimizer: adam, adamw or sgd.
        schedule: of the learning rate, of `snnkernels.train.schedules.SCHEDULES`.
        warmup: share of all steps in which the learning rate rises.
        batch_size: samples a step.
        validation: share of the training samples by which epochs and settings are chosen; 0
            validates with the test samples, and then chooses nothing.
        limit: at most so many training samples, the same share of every class; None takes all.
        regulariser: weight of the layers' potential regularisers.
        filter_lr: learning rate of synapse filters; None is that of the weights.
        hybrid: epochs of a network without spikes at the start (Samadzadeh et al., sec. 4.1).
        start: weights to begin with, see `Start`.
        keep: weights of the "last" epoch, or of the "best" one by validation.
        trainer: on what it runs.
    """

    data: dict[str, Any]
    network: dict[str, Any]
    directory: str
    epochs: int
    transforms: list[str | dict[str, Any]] = field(default_factory=list)
    code: dict[str, Any] | None = None
    loss: str | dict[str, Any] = "mse"
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "adamw", "lr": 2e-3})
    schedule: str | dict[str, Any] = "cosine"
    warmup: float = 0.0
    batch_size: int = 64
    validation: float = 0.1
    limit: int | None = None
    regulariser: float = 0.0
    filter_lr: float | None = None
    hybrid: int = 0
    start: Start = field(default_factory=Start)
    keep: Literal["last", "best"] = "last"
    trainer: TrainerOptions = field(default_factory=TrainerOptions)

    def __post_init__(self) -> None:
        if "name" not in self.network:
            raise RecipeError(f"network must have a name; got {self.network}")
        try:
            check_wholes(epochs=self.epochs, batch_size=self.batch_size)
            check_whole("hybrid", self.hybrid, 0)
            check_share(validation=self.validation)
            if self.limit is not None:
                check_whole("limit", self.limit)
        except ValueError as error:
            raise RecipeError(str(error)) from error


def as_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON knows it: what is written with a run, and compared with it later."""
    return json.loads(json.dumps(asdict(recipe), default=str))


def build(recipe: Recipe, seed: int = 0) -> tuple[SpikingClassifier, InMemoryData]:
    """Make what a recipe names.

    Args:
        recipe: all of it but ``start``.
        seed: of the weights and of the order of the samples. Default: 0.

    Returns:
        The module, whose network has the parts ``inputs`` and ``network``, and its data.

    Raises:
        RecipeError: a part or an option that is not known or not allowed.
        FileNotFoundError: files of the data are not there.
        ModuleNotFoundError: a package that the data need is not installed.
        ValueError: files of the data are damaged.
    """
    torch.manual_seed(seed)
    loss = make("loss", LOSSES, recipe.loss)
    schedule = make("schedule", SCHEDULES, recipe.schedule)
    optimizer = make("optimizer", OPTIMIZERS, recipe.optimizer, later=["params"])
    code = None if recipe.code is None else make("code", CODES, recipe.code)
    network = make_network(recipe.network)
    if recipe.hybrid and not Hybrid.able(network):
        raise RecipeError(
            "hybrid must be 0 for a network whose neurons always fire; "
            f"got {recipe.hybrid} for {recipe.network['name']}"
        )
    options = {"warmup": recipe.warmup, "regulariser": recipe.regulariser}
    data = make_data(recipe.data)
    try:
        dataset = hold_out(limited(data, recipe.limit), recipe.validation)
        transforms = [
            make("transforms", TRANSFORMS, part, samples=dataset.train)
            for part in recipe.transforms
        ]
        parts = {"inputs": Inputs(transforms, code), "network": network}
        module = SpikingClassifier(
            nn.Sequential(OrderedDict(parts)),
            classes=dataset.classes,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            filter_lr=recipe.filter_lr,
            **options,
        )
        module.optimizer(module.parameter_groups())  # its options, before any work
        return module, InMemoryData(dataset, batch_size=recipe.batch_size, seed=seed)
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from error


def make_data(part: dict[str, Any]) -> Dataset:
    """The data set of a recipe; errors as in `build`."""
    return make("data", DATASETS, part)


def make_network(part: dict[str, Any]) -> nn.Module:
    """The network of a recipe.

    Raises:
        RecipeError: an unknown name or option, or a value that is not allowed.
    """
    options = dict(part)
    name = options.pop("name", None)
    try:
        function, implied = models.find(name)
    except (TypeError, ValueError) as error:
        if "." not in str(name):
            raise RecipeError(f"network: {error}, or package.module.Name") from error
        function, implied = find("network", {}, name), {}
    if "surrogate" in options and "surrogate" in inspect.signature(function).parameters:
        implied = implied | {"surrogate": make("surrogate", SURROGATES, options.pop("surrogate"))}
    return call(f"network {name}", function, options, **implied)


def run(
    recipe: Recipe,
    *,
    seed: int = 0,
    fresh: bool = False,
    show: bool = True,
    callbacks: Sequence[L.Callback] = (),
    test: bool = True,
) -> dict | None:
    """Train by a recipe and test once, go on with what was stopped, or read what is complete.

    Args:
        recipe: what to do.
        seed: of the weights and of the order of the samples. Default: 0.
        fresh: start anew, whatever lies in the directory. Default: False.
        show: print progress. Default: True.
        callbacks: more of Lightning's. Default: none.
        test: look at the test samples at the end. Default: True.

    Returns:
        settings, steps, epochs, as in ``result.json``, and test: loss and accuracy of the test
        samples, of the weights that are kept; None where the training was stopped.

    Raises:
        RecipeError: see `build`, as for other errors.
        OSError: a file cannot be read or written.
        RunError: the directory holds a damaged file, or a run with other settings.
    """
    directory = Path(recipe.directory)
    module, data = build(recipe, seed)
    if not _begin(recipe, module.network.network, seed, fresh, show):
        return None
    extra: list[L.Callback] = []
    if recipe.hybrid:
        extra.append(Hybrid(recipe.hybrid))
    if recipe.keep == "best":
        extra.append(Best(directory))
    # whatever the weights to begin with have drawn; processes draw other numbers
    torch.manual_seed(seed + 1_000_003 * rank())
    settings = {key: value for key, value in as_json(recipe).items() if key not in APART}
    result = fit_once(
        module,
        data,
        directory=directory,
        epochs=recipe.epochs,
        settings={"seed": seed, **settings},
        fresh=fresh,
        show=show,
        callbacks=[*callbacks, *extra],
        trainer=recipe.trainer,
    )
    if test and result is not None and "test" not in result:
        load_trained(recipe, module)
        with quiet():
            trainer = recipe.trainer.make(directory)
            result["test"] = trainer.test(module, data, verbose=False)[0]
        if rank() == 0:
            runs.write_json(directory / runs.RESULT, result)
    return result


def load_trained(recipe: Recipe, module: SpikingClassifier) -> None:
    """Fill a module with the weights that a finished run of the recipe kept.

    Raises:
        OSError: there is no such run, or its file cannot be read.
        RunError: the file is damaged, or of another network.
    """
    name = runs.BEST if recipe.keep == "best" else runs.FINISHED
    checkpoint = runs.load_checkpoint(Path(recipe.directory) / name, module)
    module.load_state_dict(checkpoint["state_dict"])


def _begin(recipe: Recipe, network: nn.Module, seed: int, fresh: bool, show: bool) -> bool:
    """Fill a network with the weights to begin with; False where their training was stopped."""
    start = recipe.start
    path = start.weights
    if start == Start():
        return True
    if start.recipe is not None:
        directory = str(Path(recipe.directory) / "start")
        first = replace(recipe, start=Start(), directory=directory, **start.recipe)
        if show:
            print(f"First {first.network['name']} in {directory}")
        if run(first, seed=seed, fresh=fresh, show=show) is None:
            return False
        path = Path(directory) / (runs.BEST if first.keep == "best" else runs.FINISHED)
    state = runs.load(Path(path))
    if not isinstance(state, dict):
        raise RecipeError(f"start.weights must hold a state_dict; got {path} with {type(state)}")
    if "state_dict" in state:
        prefix = "network.network."
        state = {
            name.removeprefix(prefix): value
            for name, value in state["state_dict"].items()
            if name.startswith(prefix)
        }
    left = take_weights(network, state, leave=start.leave, freeze=start.freeze)
    if show:
        print(f"Weights of {path}; left out: {', '.join(left) or 'none'}")
    return True
