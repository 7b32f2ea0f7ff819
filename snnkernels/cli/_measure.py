"""What ``validate``, ``test`` and ``predict`` share: the network of a finished run."""

from __future__ import annotations

from pathlib import Path

from snnkernels.cli import _training


def trained(command: str, about: str, words: list[str]):
    """The recipe, its module with the weights that the run kept, its data, and a trainer.

    Args:
        command: its name.
        about: what it does.
        words: of the command line.

    Raises:
        CommandError: a mistake in the recipe.
        OSError: there is no finished run in the recipe's directory.
        RunError: its checkpoint is damaged, or of another network.
    """
    recipe, _ = _training.parse(command, about, words)
    from snnkernels.train.fit import quiet
    from snnkernels.train.recipe import build, load_trained

    with _training.mistakes(words):
        module, data = build(recipe)
    load_trained(recipe, module)
    with quiet():
        return recipe, module, data, recipe.trainer.make(Path(recipe.directory))


def measure(command: str, about: str, words: list[str]) -> int:
    """Print loss and accuracy.

    Args:
        command: "validate" or "test", a method of ``lightning.Trainer``.
        about: what it does.
        words: of the command line.
    """
    _, module, data, trainer = trained(command, about, words)
    held_out = command == "validate" and data.dataset.validation is not None
    name = "validation" if held_out else "test"
    from snnkernels.train.fit import quiet

    with quiet():
        measures = getattr(trainer, command)(module, data, verbose=False)[0]
    values = {key.rpartition("_")[2]: value for key, value in measures.items()}
    print(f"{values['accuracy']:.2%} of the {name} samples are right; loss {values['loss']:.4f}")
    return 0
