"""The texts of the programs that are compiled ahead of time: csrc/programs/*.txt.

``python -m tests.tools.programs`` writes them anew from the steps of `snnkernels.nn.neurons`.
"""

from __future__ import annotations

from pathlib import Path

from snnkernels import fuse
from snnkernels.nn.neurons import STEPS
from snnkernels.ops._step_arguments import trace_options

FOLDER = Path(__file__).parents[2] / "csrc" / "programs"


def programs() -> dict[str, str]:
    """Text by name: each neuron with all its parameters as numbers, and with all as tensors."""
    texts = {}
    for name, step in STEPS.items():
        neuron = fuse(step)
        numbers = tuple(k for k, v in neuron.parameters.items() if type(v) is float)
        for kind, tensors in (("numbers", ()), ("tensors", numbers)):
            options = trace_options(neuron.parameters, tensors)
            texts[f"{name}-{kind}"] = neuron.traced(tensors, options).program
    return texts


if __name__ == "__main__":
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for name, text in programs().items():
        (FOLDER / f"{name}.txt").write_text(text)
