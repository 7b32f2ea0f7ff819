"""The command ``associative``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch

import snnkernels
from snnkernels.backends import available_backends
from snnkernels.cli._options import add_run_options, needs, positive, whole
from snnkernels.cli._timing import interleave
from snnkernels.train import runs

HELP = """Train an associative memory of spike patterns (Fang et al., 5.1) and show what it recalls.

Ten patterns of 300 trains x 300 steps are recalled from versions with lost, shifted and extra
spikes and erased regions by a network 300-500-200-500-300. Ctrl-C stops; the same command goes on
from there.
"""
LAYERS = (300, 500, 200, 500, 300)
BATCH = 64
ROUNDS = 3  # of the measurement: the median counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe's options."""
    add_run_options(parser, out="runs/associative", epochs=50, seed="patterns, noise and weights")
    for name, default, what in (
        ("--early", 5, "epoch of the first picture"),
        ("--versions", 64, "of a pattern"),
        ("--steps", 300, "of a pattern"),
    ):
        parser.add_argument(name, type=whole(), default=default, help=f"{what} (default {default})")
    parser.add_argument("--lr", type=positive, default=0.4, help="learning rate (default 0.4)")


def run(args: argparse.Namespace) -> int:
    """Train, measure, draw."""
    with needs("train"):
        import lightning as L

        from snnkernels.models.iir_snn import IIRNetwork
        from snnkernels.train import associative as task
        from snnkernels.train import figures
        from snnkernels.train.batches import InMemoryData
        from snnkernels.train.fit import fit_once
    snnkernels.keep_freed_memory()
    patterns = task.make_patterns(trains=LAYERS[0], steps=args.steps, seed=args.seed)
    # Not the seed of the patterns: the same numbers would say which spikes there are and which of
    # them are lost.
    data = task.noisy_data(patterns, task.Noise(), versions=args.versions, seed=args.seed + 1)

    def make(backend: str) -> task.AssociativeMemory:
        torch.manual_seed(args.seed)
        network = IIRNetwork(LAYERS, backend=backend, **task.NETWORK)
        return task.AssociativeMemory(network, patterns, lr=args.lr, backend=backend)

    module = make(args.backend)
    start = module.network.kernels(30)
    shown = data.test.x[:1]  # of the first pattern

    class Recall(L.Callback):
        """Keep what the network recalls after the early and the last epoch."""

        def on_train_epoch_end(self, trainer, module) -> None:
            epoch = trainer.current_epoch + 1
            if trainer.is_last_batch and epoch in (args.early, args.epochs):
                with torch.no_grad():
                    recalled = module(shown)[:, 0].byte().cpu()
                runs.save(args.out / f"recalled-{epoch}.pt", recalled)

    names = ("seed", "backend", "early", "versions", "steps", "lr")
    result = fit_once(
        module,
        InMemoryData(data, batch_size=BATCH, seed=args.seed),
        directory=args.out,
        epochs=args.epochs,
        settings={name: getattr(args, name) for name in names},
        fresh=args.fresh,
        callbacks=[Recall()],
    )
    if result is None:
        return 130

    summary = _summary(module, data.test, result, args)
    batch = data.train.x[:BATCH], data.train.y[:BATCH]
    used = available_backends("cpu")[0] if args.backend == "auto" else args.backend
    if used != "torch":
        batches = -(-len(data.train.y) // BATCH)
        times = _compare({name: make(name) for name in ("torch", used)}, batch, batches)
        summary["seconds_per_epoch_by_backend"] = times
        print(
            f"Steps of an epoch: torch {times['torch']:.1f} s, {used} {times[used]:.1f} s, "
            f"{times['torch'] / times[used]:.1f} times as fast"
        )
    runs.write_json(args.out / "summary.json", summary)
    trains = {"input": shown[0]}
    for epoch in summary["after"]:
        trains[f"output, epoch {epoch}"] = runs.load(args.out / f"recalled-{epoch}.pt")
    title = "One pattern, whole and enlarged, and what the memory makes of it"
    figures.rasters(args.out / "rasters.png", patterns[0], trains, title)
    figures.responses(args.out / "kernels.png", start, module.network.kernels(30))
    figures.curves(args.out / "curves.png", result["steps"], result["epochs"])
    print(f"Results in {args.out}: rasters.png, kernels.png, curves.png, summary.json")
    return 0


def _summary(module, test, result: dict, args: argparse.Namespace) -> dict:
    """What came out, printed and as JSON knows it."""
    shown = test.x.transpose(0, 1).to(module.patterns)
    with torch.no_grad():
        silent, noisy, recalled = (
            module.distance(s, test.y, "none")
            for s in (torch.zeros_like(shown), shown, module(test.x))
        )
    nearer = float((recalled < noisy).float().mean())
    silent, noisy, recalled = (float(d.mean()) for d in (silent, noisy, recalled))
    print(f"van Rossum distance: {silent:.2f} without any spike, {noisy:.2f} of the noisy inputs")
    pictured = sorted({min(args.early, args.epochs), args.epochs})
    after = {epoch: result["epochs"][epoch - 1] for epoch in pictured}
    for epoch, measures in after.items():
        print(
            f"epoch {epoch}: van Rossum distance {measures['val_loss']:.2f}, "
            f"{measures['val_accuracy']:.0%} of {len(test.y)} outputs closest to their own target"
        )
    print(
        f"{nearer:.0%} of the outputs are nearer to their pattern than their input was; the mean "
        f"distance is {recalled / noisy:.0%} of the inputs'"
    )
    return {
        "settings": result["settings"],
        "threads": result["threads"],
        "distance_without_spikes": silent,
        "distance_of_inputs": noisy,
        "distance_of_outputs": recalled,
        "outputs_nearer_than_inputs": nearer,
        "seconds_per_epoch": median(e["seconds"] for e in result["epochs"]),
        "after": after,
    }


def _compare(modules: dict, batch: tuple, batches: int) -> dict[str, float]:
    """Seconds of an epoch of training steps on each backend, which must give equal losses."""
    losses = {}

    def step(name: str) -> Callable[[], None]:
        module = modules[name].train()
        optimizer = module.optimizer(module.parameter_groups())

        def run() -> None:
            optimizer.zero_grad()
            losses[name], _ = module.evaluate(*batch)
            losses[name].backward()
            optimizer.step()

        return run

    times = interleave({name: step(name) for name in modules}, rounds=ROUNDS)
    if not torch.equal(*losses.values()):
        raise RuntimeError(f"backends {' and '.join(modules)} differ: no times are given")
    return {name: batches * times.median(name) for name in modules}
