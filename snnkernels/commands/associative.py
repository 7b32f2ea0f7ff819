"""Train an associative memory of spike patterns (Fang et al., 5.1) and show what it recalls.

Ten patterns of 300 trains x 300 steps are recalled from versions with lost, shifted and extra
spikes by a network 300-500-200-500-300.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe's options."""
    parser.add_argument("--out", type=Path, default=Path("runs/associative"), help="results")
    parser.add_argument("--seed", type=int, default=0, help="of patterns, noise and weights")
    parser.add_argument("--epochs", type=int, default=50, help="default 50")
    parser.add_argument("--early", type=int, default=5, help="epoch of the first picture")
    parser.add_argument("--batches", type=int, default=10, help="steps an epoch (default 10)")
    parser.add_argument("--lr", type=float, default=1e-2, help="learning rate (default 1e-2)")
    parser.add_argument("--backend", default="auto", help="of filters and neurons (default auto)")


def run(args: argparse.Namespace) -> int:
    """Train, measure, draw."""
    try:
        import lightning as L

        from snnkernels import figures
        from snnkernels.associative import (
            AssociativeMemory,
            Noise,
            NoisyPatterns,
            corrupt,
            make_patterns,
        )
        from snnkernels.models.iir_snn import IIRNetwork
        from snnkernels.training import quiet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the recipe needs more than torch ({error}): pip install 'snnkernels[train]'"
        ) from error
    torch.manual_seed(args.seed)
    noise = Noise()
    patterns = make_patterns(seed=args.seed)
    sizes = (patterns.shape[2], 500, 200, 500, patterns.shape[2])
    module = AssociativeMemory(
        IIRNetwork(sizes, backend=args.backend), lr=args.lr, backend=args.backend
    )
    start = [kernel.clone() for kernel in module.network.kernels(30)]
    # Ten noisy versions of each pattern that training never sees.
    generator = torch.Generator().manual_seed(args.seed + 1_000_003)
    unseen = [corrupt(patterns, noise, generator).transpose(0, 1) for _ in range(10)]

    def measure() -> tuple[torch.Tensor, float, float]:
        module.eval()
        results = [module.recall(x, patterns) for x in unseen]
        module.train()
        distances = torch.stack([d for _, d in results])
        own = torch.arange(len(patterns))
        share = (distances.argmin(2) == own).float().mean().item()
        return results[0][0], distances[:, own, own].mean().item(), share

    class Watch(L.Callback):
        """Measures after the early and the last epoch, and the time of every epoch."""

        def __init__(self):
            self.found, self.seconds = {}, []

        def on_train_epoch_start(self, trainer, _):
            self.started = time.perf_counter()

        def on_train_epoch_end(self, trainer, _):
            self.seconds.append(time.perf_counter() - self.started)
            epoch = trainer.current_epoch + 1
            if epoch in (args.early, args.epochs):
                self.found[epoch] = measure()
                _, distance, share = self.found[epoch]
                print(
                    f"epoch {epoch}: van Rossum distance {distance:.3f}, {share:.0%} of outputs "
                    f"closest to their own target, {self.seconds[-1]:.1f} s an epoch",
                    flush=True,
                )

    watch = Watch()
    loader = torch.utils.data.DataLoader(
        # Not the seed of the patterns: the same numbers would say which spikes there are and which
        # of them are lost.
        NoisyPatterns(patterns, noise, args.batches, args.seed + 1),
        batch_size=None,
    )
    with quiet():
        trainer = L.Trainer(
            max_epochs=args.epochs,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            devices=1,
        )
        trainer.fit(module, loader)
    if args.epochs not in watch.found:
        print("Stopped before the last epoch.")
        return 130
    args.out.mkdir(parents=True, exist_ok=True)
    rows = {"target": patterns[0], "input": unseen[0][:, 0]}
    rows |= {f"output, epoch {e}": s[:, 0] for e, (s, _, _) in sorted(watch.found.items())}
    figures.rasters(args.out / "rasters.png", rows, "One pattern and what the memory makes of it")
    figures.responses(args.out / "kernels.png", start, module.network.kernels(30))
    result = {
        "epochs": args.epochs,
        "seed": args.seed,
        "backend": args.backend,
        "threads": torch.get_num_threads(),
        "noise": noise._asdict(),
        "seconds_per_epoch": sorted(watch.seconds)[len(watch.seconds) // 2],
        "after": {
            epoch: {"distance": distance, "closest_to_own": share}
            for epoch, (_, distance, share) in watch.found.items()
        },
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"Pictures and figures are in {args.out}: rasters.png, kernels.png, result.json")
    return 0
