"""The benchmark suites: ``python -m bench`` lists them, ``python -m bench layers`` runs one.

Exit status 3: a provider timed against itself lay more than a tenth apart; the tables say where.
"""

from __future__ import annotations

import sys
from importlib import import_module

SUITES = {
    "kernels": "the neuron op and its kernels against loops, torch.compile and other libraries",
    "iir": "the filter and the fused synapse",
    "fuse": "neurons written as steps, against the loop and against lif",
    "layers": "linear layers with neurons, a step of training, against other libraries",
    "models": "a training step of S-ResNet38 against the loop written from its paper",
    "scaling": "time and memory against the number of steps, with a picture",
    "startup": "import, first call and first trace, each in a process of its own",
}


def main() -> int:
    """Run the suite that the command line names."""
    name, rest = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if name not in SUITES:
        listed = "\n".join(f"  {suite:<9} {what}" for suite, what in SUITES.items())
        text = f"usage: python -m bench SUITE [--help] [options]\n\n{listed}"
        if name in ("", "-h", "--help"):
            print(text)
            return 0
        print(f"{text}\n\nerror: there is no suite {name!r}", file=sys.stderr)
        return 2
    sys.argv = [f"python -m bench {name}", *rest]
    try:
        return import_module(f"bench.{name}").main() or 0
    except KeyboardInterrupt:
        print("stopped; what was measured is written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
