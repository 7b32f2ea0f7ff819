"""What the recipes for time series share (Fang et al., 5.3): networks, study, table, pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import mean, median, stdev

import torch

import snnkernels
from snnkernels.cli._options import CommandError, add_run_options, needs, positive, whole
from snnkernels.core.files import write_whole

NETWORKS = {
    "trained": "spiking, filters trained",
    "fixed": "spiking, filters fixed",
    "lstm": "LSTM 2 x 300",
}
SEEDS = (0, 1, 2)
FILTER_LR = 5e-4  # each coefficient acts on every spike of its input


def add_arguments(parser: argparse.ArgumentParser, *, out: str, epochs: int, batch: int) -> None:
    """The options of a recipe for time series."""
    add_run_options(parser, out=out, epochs=epochs, seed="weights and order")
    parser.add_argument(
        "--network", choices=NETWORKS, default="trained", help="what to train (default trained)"
    )
    parser.add_argument("--study", action="store_true", help="all networks, with seeds 0, 1, 2")
    parser.add_argument("--lr", type=positive, default=1e-3, help="learning rate (default 1e-3)")
    parser.add_argument(
        "--batch", type=whole(), default=batch, help=f"samples a step (default {batch})"
    )


def run(args: argparse.Namespace, title: str, load: Callable, settings: dict, options: dict) -> int:
    """Train one network, or all of a study; print a table, draw.

    Args:
        args: of the command line.
        title: of the task.
        load: gives the `snnkernels.train.data.Dataset`.
        settings: what besides the options above makes this run another one.
        options: of `snnkernels.models.iir_snn.SeriesSNN`.
    """
    with needs("train"):
        from snnkernels.train import figures
    snnkernels.keep_freed_memory()
    try:
        dataset = load()
    except ValueError as error:
        raise CommandError(str(error)) from error
    print(
        f"{title}: {len(dataset.train.y):,} training and {len(dataset.test.y):,} test series, "
        f"{dataset.train.x.shape[2]} values a step, {dataset.classes} classes"
    )
    results: dict[str, list[dict]] = {}
    for seed in SEEDS if args.study else (args.seed,):
        for name in NETWORKS if args.study else (args.network,):
            result = _train(name, seed, dataset, args, settings, options)
            if result is None:
                return 130
            results.setdefault(name, []).append(result)
    table = _table(results)
    print(f"\n{table}")
    if args.study:
        write_whole(args.out / "study.md", f"{table}\n".encode())
        figures.accuracies(
            args.out / "accuracy.png",
            {
                NETWORKS[name]: [[e["val_accuracy"] for e in run["epochs"]] for run in runs]
                for name, runs in results.items()
            },
            f"{title}: mean and range of seeds {', '.join(map(str, SEEDS))}",
        )
        print(f"Results in {args.out}: study.md, accuracy.png, and a folder of each training")
    return 0


def _train(
    name: str, seed: int, dataset, args: argparse.Namespace, settings: dict, options: dict
) -> dict | None:
    """Train one network and draw what came out; None where Ctrl-C stopped it."""
    from snnkernels.models.iir_snn import SeriesLSTM, SeriesSNN
    from snnkernels.train import figures
    from snnkernels.train.batches import InMemoryData
    from snnkernels.train.fit import fit_once
    from snnkernels.train.module import SpikingClassifier, adamw

    torch.manual_seed(seed)
    sizes = dataset.train.x.shape[2], dataset.classes
    if name == "lstm":
        network = SeriesLSTM(*sizes)
    else:
        settings = settings | {"backend": args.backend}
        network = SeriesSNN(
            *sizes, learn_filters=name == "trained", backend=args.backend, **options
        )
    start = network.network.kernels(30) if name == "trained" else None
    out = args.out / f"{name}-{seed}"
    print(f"\n{NETWORKS[name]}, seed {seed}, in {out}")
    result = fit_once(
        SpikingClassifier(
            network,
            classes=dataset.classes,
            loss="cross_entropy",
            optimizer=adamw(args.lr),
            filter_lr=FILTER_LR,
        ),
        InMemoryData(dataset, batch_size=args.batch, seed=seed),
        directory=out,
        epochs=args.epochs,
        settings={"seed": seed, "lr": args.lr, "batch": args.batch, **settings},
        fresh=args.fresh,
    )
    if result is None:
        return None
    figures.curves(out / "curves.png", result["steps"], result["epochs"])
    if start is not None:
        figures.responses(out / "kernels.png", start, network.network.kernels(30))
    return result | {"parameters": sum(p.numel() for p in network.parameters())}


def _table(results: dict[str, list[dict]]) -> str:
    """Test accuracy after the last epoch, as Markdown."""
    rows = [
        "| network | parameters | test accuracy, last epoch (%) | each seed | s an epoch |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, runs in results.items():
        last = [100 * run["epochs"][-1]["val_accuracy"] for run in runs]
        spread = f" ± {stdev(last):.2f}" if len(last) > 1 else ""
        seconds = median(epoch["seconds"] for run in runs for epoch in run["epochs"])
        rows.append(
            f"| {NETWORKS[name]} | {runs[0]['parameters']:,} | {mean(last):.2f}{spread} | "
            f"{', '.join(f'{value:.2f}' for value in last)} | {seconds:.1f} |"
        )
    return "\n".join(rows)
