"""The texts of the programs that are compiled ahead of time: csrc/programs/*.txt.

``python -m tests.tools.programs`` writes them anew from the steps of `snnkernels.nn.neurons`, and
from those of other libraries that are installed.
"""

from __future__ import annotations

from pathlib import Path

from snnkernels import fuse
from snnkernels.nn.neurons import STEPS
from snnkernels.ops._step_arguments import trace_options
from tests.tools.peer_programs import PEERS, peer_programs

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


def kept(*libraries: str) -> dict[str, str]:
    """Text by name, as the files have it: of libraries, or of the neurons that ship."""
    return {
        file.stem: file.read_text()
        for file in FOLDER.glob("*.txt")
        if (file.stem.partition("-")[0] in (libraries or PEERS)) == bool(libraries)
    }


if __name__ == "__main__":
    texts = programs() | peer_programs()
    stale = kept() | kept(*{name.partition("-")[0] for name in texts} & PEERS.keys())
    for name in stale:
        (FOLDER / f"{name}.txt").unlink()
    for name, text in texts.items():
        (FOLDER / f"{name}.txt").write_text(text)
