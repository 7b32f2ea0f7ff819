"""Pictures of spiking networks at work. Needs matplotlib; draws to files, opens no window."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from snnkernels.core.files import write_whole

BLUE, ORANGE, GREY, BLACK = "#0072b2", "#d55e00", "#b8b8b8", "#222222"
COLOURS = (ORANGE, BLUE, "#009e73", BLACK)

CURVES = (("train", BLUE, "training, mean of"), ("val", ORANGE, "test, after"))


class Reading(NamedTuple):
    """What a network made of one sample.

    Attributes:
        image: `[H, W]`, 0 ... 1.
        label: the true class.
        s: spikes of the output neurons `[T, C]`.
        h: their potentials before firing `[T, C]`.
    """

    image: Tensor
    label: int
    s: Tensor
    h: Tensor

    @property
    def answer(self) -> int:
        """The class that spiked most."""
        return int(self.s.sum(0, dtype=torch.float32).argmax())


def raster(path: Path, image: Tensor, label: int, layers: dict[str, Tensor], shown: int = 128):
    """Spikes of every layer over time, beside the image that caused them.

    Args:
        path: where the picture goes.
        image: `[H, W]`.
        label: class of the image.
        layers: title and spikes `[T, M]` of each layer.
        shown: at most so many neurons of a layer, evenly spaced. Default: 128.
    """
    figure = Figure(figsize=(3 + 2.6 * len(layers), 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(layers), width_ratios=[1.1] + [1] * len(layers))
    _image(axes[0], image, f"input: a {label}")
    for axis, (title, spikes) in zip(axes[1:], layers.items(), strict=True):
        steps, size = spikes.shape
        rate = float(spikes.mean())
        if size > shown:
            spikes = spikes[:, torch.linspace(0, size - 1, shown).round().long()]
        t, neuron = spikes.nonzero(as_tuple=True)
        count = spikes.shape[1]
        axis.scatter(
            (t + 1).tolist(), neuron.tolist(), s=60 if count <= 10 else 5, color=BLUE, linewidths=0
        )
        axis.set_xlim(0.5, steps + 0.5)
        axis.set_ylim(-0.7, count - 0.3)
        axis.set_xticks(range(1, steps + 1))
        axis.set_xlabel("time step")
        if count <= 10:
            axis.set_yticks(range(count))
        part = f"{count} of {size:,} neurons" if size > shown else f"{size} neurons"
        axis.set_ylabel("digit" if count <= 10 else part)
        axis.set_title(f"{title}\nfires in {rate:.0%} of the steps", fontsize=10)
    figure.suptitle("Spikes of one digit through the network")
    _save(figure, path)


def rasters(
    path: Path, target: Tensor, trains: dict[str, Tensor], title: str, near: int = 1
) -> None:
    """Spike trains beside those they should be, whole and, in a second row, a part enlarged.

    Args:
        path: where the picture goes.
        target: `[T, M]`.
        trains: title and spikes `[T, M]`, of any dtype, of each part.
        title: of the whole.
        near: a spike counts as right at most so many steps from one of the target. Default: 1.
    """
    figure = Figure(figsize=(1 + 2.6 * (1 + len(trains)), 5.6), layout="constrained")
    rows = figure.subplots(2, 1 + len(trains), sharex="row", sharey="row", squeeze=False)
    around = torch.nn.functional.max_pool1d(target.float().T, 2 * near + 1, 1, near).T > 0
    for column, (name, spikes) in enumerate({"target": target, **trains}.items()):
        share = float((spikes > 0).float().mean())
        label = f"{name}\n{share:.1%} of the bins"
        parts = [(spikes > 0, BLUE)]
        if column:
            parts = [((spikes > 0) & around, BLUE), ((spikes > 0) & ~around, ORANGE)]
            right = float(parts[0][0].sum() / (spikes > 0).sum().clamp_min(1))
            label += f", {right:.0%} of them right"
        for axis, size in zip(rows[:, column], (1, 12), strict=True):
            for part, colour in parts:
                t, train = part.nonzero(as_tuple=True)
                axis.scatter(t.tolist(), train.tolist(), s=size, color=colour, linewidths=0)
            axis.set_xlabel("time step")
        rows[0, column].set_title(label, fontsize=10)
    steps, count = target.shape
    rows[1, 0].set_xlim(steps * 0.5, steps * 0.75)
    rows[1, 0].set_ylim(count * 0.5, count * 0.65)
    for axis in rows[:, 0]:
        axis.set_ylabel("number of the spike train")
    figure.suptitle(f"{title}\norange: no spike of the target within {near} step", fontsize=11)
    _save(figure, path)


def sequences(path: Path, rows: dict[str, Tensor]) -> None:
    """The frames of sequences, one below the other.

    Args:
        path: where the picture goes.
        rows: title and frames `[T, H, W]`, 0 ... 255, of each sequence.
    """
    steps = max(len(frames) for frames in rows.values())
    figure = Figure(figsize=(1.5 + 0.8 * steps, 0.8 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), steps, squeeze=False)
    for axes, (title, frames) in zip(grid, rows.items(), strict=True):
        for axis, frame in zip(axes, frames, strict=False):
            axis.imshow(frame.numpy(), cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    for axis, t in zip(grid[-1], range(1, steps + 1), strict=True):
        axis.set_xlabel(f"t = {t}", fontsize=8)
    _save(figure, path)


def responses(
    path: Path, start: Sequence[Tensor], learned: Sequence[Tensor], shown: int = 30
) -> None:
    """What each layer's synapses answer to one spike, at the start and after training.

    Args:
        path: where the picture goes.
        start: response of each layer, `[steps, inputs]`.
        learned: the same after training.
        shown: at most so many inputs of a layer. Default: 30.
    """
    figure = Figure(figsize=(1 + 3 * len(start), 3.4), layout="constrained")
    axes = figure.subplots(1, len(start), sharex=True, squeeze=False)[0]
    for k, (axis, before, after) in enumerate(zip(axes, start, learned, strict=True)):
        inputs = after.shape[1]
        some = torch.linspace(0, inputs - 1, min(shown, inputs)).round().long()
        lines = axis.plot(after[:, some].numpy(), color=ORANGE, alpha=0.35, linewidth=0.8)
        lines[0].set_label("learned, one line per input")
        axis.plot(before[:, 0].numpy(), color=BLACK, linewidth=1.8, label="at the start")
        axis.set_title(f"layer {k + 1}, {len(some)} of {inputs} inputs", fontsize=10)
        axis.set_xlabel("time steps after the spike")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("response to one spike")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Synapse filters before and after training")
    _save(figure, path)


def accuracies(path: Path, runs: dict[str, Sequence[Sequence[float]]], title: str) -> None:
    """Test accuracy over the epochs of networks that were trained several times.

    Args:
        path: where the picture goes.
        runs: title of a network, and the accuracies (0 ... 1) after the epochs of each of its runs.
        title: of the whole.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for (name, values), colour in zip(runs.items(), COLOURS, strict=False):
        percent = 100 * torch.tensor(values)
        epochs = range(1, percent.shape[1] + 1)
        axis.plot(epochs, percent.mean(0), "o-", color=colour, markersize=3, label=name)
        axis.fill_between(
            epochs, percent.amin(0), percent.amax(0), color=colour, alpha=0.2, linewidth=0
        )
    worst = 100 * min(run[-1] for values in runs.values() for run in values)
    axis.set_ylim(max(0, 100 - 5 * (100 - worst)), 100)  # the first epochs are not the point
    axis.set_xlabel("epoch")
    axis.set_ylabel("test accuracy (%)")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right")
    _save(figure, path)


def potentials(path: Path, readings: Sequence[Reading], threshold: float) -> None:
    """Potentials of the output neurons over time, one row for each sample.

    Args:
        path: where the picture goes.
        readings: samples, for example one that was read right and one that was not.
        threshold: at which the neurons fire.
    """
    figure = Figure(figsize=(9, 3.3 * len(readings) + 0.4), layout="constrained")
    rows = figure.subplots(len(readings), 2, width_ratios=[1, 2.6], squeeze=False)
    for (left, right), reading in zip(rows, readings, strict=True):
        verdict = "right" if reading.answer == reading.label else "wrong"
        _image(left, reading.image, f"a {reading.label}, read as {reading.answer}: {verdict}")
        steps = range(1, len(reading.h) + 1)
        for digit in range(reading.h.shape[1]):
            colour, width, name = GREY, 1.0, None
            count = int(reading.s[:, digit].sum())
            if digit == reading.label:
                colour, width, name = BLUE, 2.2, f"{digit}, the true digit: {_spikes(count)}"
            elif digit == reading.answer:
                colour, width, name = ORANGE, 2.2, f"{digit}, the answer: {_spikes(count)}"
            right.plot(
                steps, reading.h[:, digit].tolist(), color=colour, linewidth=width, label=name
            )
            fired = reading.s[:, digit].nonzero().flatten()
            at, h = (fired + 1).tolist(), reading.h[fired, digit].tolist()
            right.plot(at, h, "o", color=colour, markersize=6)
        right.plot([], [], color=GREY, label="the other digits")
        right.plot([], [], "o", color=BLACK, label="spike")
        right.axhline(threshold, color=BLACK, linestyle="--", linewidth=1, label="threshold")
        right.set_xticks(list(steps))
        right.set_ylabel("potential h before firing")
        right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    rows[-1][1].set_xlabel("time step")
    figure.suptitle("Potentials of the ten output neurons")
    _save(figure, path)


def curves(path: Path, steps: Sequence[float], epochs: Sequence[dict[str, float]]) -> None:
    """Loss and accuracy over training.

    Args:
        path: where the picture goes.
        steps: training loss of every step.
        epochs: dicts with train_loss, val_loss, val_accuracy and, where measured, train_accuracy.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = range(1, len(epochs) + 1)
    per_epoch = len(steps) / max(1, len(epochs))
    at = [(i + 1) / per_epoch for i in range(len(steps))]
    left.plot(at, steps, color=GREY, linewidth=0.8, label="training, each step")
    for axis, measure, name in ((left, "loss", "loss"), (right, "accuracy", "accuracy (%)")):
        scale = 100 if measure == "accuracy" else 1
        for phase, colour, label in CURVES:
            if f"{phase}_{measure}" not in epochs[0]:
                continue
            values = [scale * epoch[f"{phase}_{measure}"] for epoch in epochs]
            axis.plot(ends, values, "o-", color=colour, markersize=4, label=f"{label} each epoch")
        axis.set_xlabel("epoch")
        axis.set_ylabel(name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    left.set_yscale("log")
    left.set_title("Loss")
    right.set_title(f"Accuracy: {100 * epochs[-1]['val_accuracy']:.1f} % of the test samples")
    _save(figure, path)


def speed(
    path: Path,
    layer: dict[str, float],
    step: dict[str, float],
    share: dict[str, float],
    subtitle: str,
) -> None:
    """Bars of the time that backends take.

    Args:
        path: where the picture goes.
        layer: seconds of one neuron layer alone, by backend.
        step: seconds of a training step, by backend.
        share: of the step that passes in neuron layers, 0 ... 1, by backend.
        subtitle: what was measured, and on what.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(layer)
    bars = left.bar(names, [1e3 * layer[n] for n in names], 0.6, color=ORANGE)
    left.bar_label(bars, [f"{1e3 * layer[n]:.1f} ms" for n in names], padding=2)
    left.set_title(
        f"One neuron layer: {max(layer.values()) / min(layer.values()):.1f} times as fast"
    )
    neurons = [1e3 * step[n] * share[n] for n in names]
    rest = [1e3 * step[n] * (1 - share[n]) for n in names]
    right.bar(names, rest, 0.6, color=BLUE, label="everything else")
    bars = right.bar(names, neurons, 0.6, rest, color=ORANGE, label="neurons")
    labels = [f"{1e3 * step[n]:.0f} ms\nneurons {share[n]:.0%}" for n in names]
    right.bar_label(bars, labels, padding=2)
    right.set_title(
        f"Whole training step: {max(step.values()) / min(step.values()):.1f} times as fast"
    )
    right.legend(frameon=False)
    for axis in (left, right):
        axis.set_ylabel("time (ms), lower is better")
        axis.set_xlabel("backend of the neurons")
        axis.margins(y=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(subtitle, fontsize=10)
    _save(figure, path)


def growth(
    path: Path, measured: dict[str, Sequence[tuple[int, float, float]]], expected: str, title: str
) -> None:
    """Peak memory and time of a training step against the number of time steps.

    Args:
        path: where the picture goes.
        measured: title of each way to train, and its (steps, MiB, seconds), steps ascending.
        expected: the title whose line is drawn on, dashed and in proportion to the steps, as far as
            the longest of all.
        title: of the whole.
    """
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(1, 2)
    longest = max(rows[-1][0] for rows in measured.values())
    what = (("peak memory (MiB)", "Memory"), ("seconds a training step", "Time"))
    for k, (axis, (label, name)) in enumerate(zip(axes, what, strict=True), 1):
        for (way, rows), colour in zip(measured.items(), COLOURS, strict=False):
            steps, values = [row[0] for row in rows], [row[k] for row in rows]
            axis.plot(steps, values, "o-", color=colour, markersize=5, label=way)
            if way == expected and steps[-1] < longest:
                ends = [values[-1], values[-1] * longest / steps[-1]]
                axis.plot([steps[-1], longest], ends, "--", color=colour, linewidth=1.2)
                axis.plot(longest, ends[1], "o", color=colour, markersize=5, fillstyle="none")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("time steps T of the sequence")
        axis.set_ylabel(label)
        axis.set_title(f"{name}: lower is better")
        axis.grid(alpha=0.3)
    axes[1].plot([], [], "k--", linewidth=1.2, label="expected in proportion, not run")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _spikes(count: int) -> str:
    return f"{count} spike" + ("" if count == 1 else "s")


def _image(axis, image: Tensor, title: str) -> None:
    axis.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(title, fontsize=11)
    axis.set_xticks([])
    axis.set_yticks([])


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format=path.suffix[1:])
    write_whole(path, buffer.getbuffer())
