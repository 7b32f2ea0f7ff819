"""The command ``stream``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import snnkernels
from snnkernels.cli._memory import peak_mib
from snnkernels.cli._options import MOST_SEED, CommandError, needs, positive, whole
from snnkernels.core.files import check_folder, write_whole

HELP = """Train a spiking network on a sound of 100,000 samples, each a time step, in little memory.

The sound is generated, or made of your recordings. At every sample the network says what it hears;
back-propagation goes through all of them, in chunks. Then the peak memory and the time of a
training step are measured and drawn against the number of steps: for the loop over time in PyTorch,
for fused neurons, and for chunks. Some minutes on two CPU cores; --quick takes seconds.
"""
STEPS, CHUNK = 100_000, 1_000
QUICK_STEPS, QUICK_CHUNK = 1_000, 100
WAYS = {
    "loop": "loop over time in PyTorch",
    "fused": "fused neurons",
    "bits": "fused neurons, spikes kept as bits",
    "chunks": "fused neurons in chunks (checkpoint_time)",
}
LONGEST_LOOP = 10_000  # steps that the loop is run with; what more take is expected in proportion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--out", type=Path, default=Path("runs/stream"), help="folder of results")
    parser.add_argument(
        "--folder", type=Path, help="of recordings DIGIT_SPEAKER_INDEX.wav (default: tones)"
    )
    parser.add_argument("--steps", type=whole(100), help=f"of the sound (default {STEPS:,})")
    parser.add_argument("--chunk", type=whole(), help=f"steps of a chunk (default {CHUNK:,})")
    for name, default, what in (
        ("--streams", 4, "sounds side by side"),
        ("--passes", 20, "training steps, each on another sound"),
        ("--depth", 3, "layers of neurons"),
        ("--width", 64, "neurons of a layer"),
    ):
        parser.add_argument(name, type=whole(), default=default, help=f"{what} (default {default})")
    parser.add_argument("--lr", type=positive, default=1e-2, help="learning rate (default 1e-2)")
    parser.add_argument(
        "--seed", type=whole(0, MOST_SEED), default=0, help="of weights and sounds (default 0)"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_STEPS:,} steps in two passes, to try it"
    )


def run(args: argparse.Namespace) -> int:
    """Train, measure, draw."""
    with needs("train"):
        from snnkernels.train import figures, stream
    steps = args.steps or (QUICK_STEPS if args.quick else STEPS)
    args.chunk = args.chunk or (QUICK_CHUNK if args.quick else CHUNK)
    passes = min(args.passes, 2) if args.quick else args.passes
    check_folder(args.out)
    draw = test = stream.tones
    if args.folder is not None:
        try:
            draw, test = stream.speech(args.folder), stream.speech(args.folder, test=True)
        except ValueError as error:
            raise CommandError(str(error)) from error
    sound = stream.TONES if args.folder is None else f"spoken digits from {args.folder}"
    torch.manual_seed(args.seed)
    model = stream.Heard(stream.StreamNet(args.width, args.depth))
    print(
        f"{args.streams} streams of {steps:,} steps: {sound}\n"
        f"{args.depth} layers of {args.width} spiking neurons, "
        f"{sum(p.numel() for p in model.parameters()):,} weights; trained in chunks of "
        f"{args.chunk:,} steps"
    )
    generator = torch.Generator().manual_seed(args.seed)
    history = _train(model, draw, steps, passes, generator, args)
    with torch.no_grad():
        accuracy = _heard(model, test(steps, args.streams, generator), args.chunk)[1].item()
    print(f"In sounds that it was not trained on it is right at {accuracy:.1%} of the steps.\n")
    measured = _measure(steps, args)
    result = {
        "steps": steps,
        "sound": sound,
        "passes": history,
        "test_accuracy": accuracy,
        "measured": measured,
    }
    write_whole(args.out / "stream.json", json.dumps(result, indent=1).encode())
    if all(rows for rows in measured.values()):
        title = (
            f"A training step of {args.depth} layers of {args.width} spiking neurons, "
            f"{args.streams} sounds side by side, chunks of {args.chunk:,} steps\n"
            f"float32, threads on the CPU: {torch.get_num_threads()}; one run each"
        )
        named = {WAYS[way]: rows for way, rows in measured.items()}
        figures.growth(args.out / "memory.png", named, WAYS["loop"], title)
        print(f"Results in {args.out}: stream.json, memory.png")
    else:
        print(f"Results in {args.out}: stream.json. Peak memory is told by Linux only: no picture")
    return 0


def _train(model, draw: Callable, steps: int, passes: int, generator, args) -> list[dict]:
    """Train on a new sound in each pass; what each one gave."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    short = draw(100, args.streams, torch.Generator())
    _heard(model, short, args.chunk)[0].backward()  # loads what is loaded but once,
    optimizer.zero_grad()  # and changes nothing
    optimizer.step()
    history = []
    for number in range(1, passes + 1):
        sound = draw(steps, args.streams, generator)
        seen: dict = {"pass": number}

        def step(sound=sound, seen=seen) -> None:
            start = time.perf_counter()
            loss, right = _heard(model, sound, args.chunk)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seen["seconds"] = time.perf_counter() - start
            seen["loss"], seen["accuracy"] = loss.item(), right.item()

        seen["peak_mib"] = peak_mib(step)
        history.append(seen)
        if number in (1, passes) or number % 5 == 0:
            told = "" if seen["peak_mib"] is None else f", peak memory {seen['peak_mib']:.0f} MiB"
            print(
                f"pass {number}: loss {seen['loss']:.3f}, right at {seen['accuracy']:.1%} of the "
                f"steps, {seen['seconds']:.1f} s{told}"
            )
    return history


def _heard(model, sound: Tensor, chunk: int | None) -> tuple[Tensor, Tensor]:
    """Loss and share of right answers, means over all steps; at once where chunk is None."""
    sums = (
        model(sound)
        if chunk is None
        else snnkernels.checkpoint_time(model, sound, chunk, output="sum")
    )
    return tuple(value / sound[..., 0].numel() for value in sums)


def _measure(steps: int, args: argparse.Namespace) -> dict[str, list[tuple[int, float, float]]]:
    """(steps, MiB, seconds) of a training step, for each way; printed as a table."""
    from snnkernels.train import stream

    sizes = sorted({max(100, steps // k) for k in (100, 30, 10, 3, 1)})
    measured: dict[str, list[tuple[int, float, float]]] = {}
    print(f"{'peak memory and time of a training step':42}" + "".join(f"{n:>19,}" for n in sizes))
    for way, name in WAYS.items():
        network = stream.StreamNet(
            args.width,
            args.depth,
            save="bits" if way == "bits" else None,
            backend="torch" if way == "loop" else "auto",
        )
        model, chunk = stream.Heard(network), args.chunk if way == "chunks" else None
        rows = measured[way] = []
        for size in sizes:
            if way == "loop" and rows and size > LONGEST_LOOP:
                break
            row = _one_step(model, size, args.streams, chunk, warm=not rows)
            if row is None:
                break
            rows.append(row)
        print(f"{name:42}" + "".join(f"{_told(m, s):>19}" for _, m, s in rows))
    loop, chunks = measured["loop"], measured["chunks"]
    if loop and chunks:
        length, mib, _ = loop[-1]
        print(
            f"For {steps:,} steps the loop needs {mib * steps / length:,.0f} MiB"
            f"{'' if length == steps else f' (from {length:,} steps, in proportion)'}, "
            f"the chunks {chunks[-1][1]:,.0f} MiB."
        )
    return measured


def _one_step(
    model, steps: int, streams: int, chunk: int | None, warm: bool
) -> tuple[int, float, float] | None:
    """Steps, peak memory and time of one forward and backward pass; None without a way to tell."""
    from snnkernels.train import stream

    sound = stream.tones(steps, streams, torch.Generator().manual_seed(0))
    seconds = 0.0

    def step(sound=sound) -> None:
        nonlocal seconds
        start = time.perf_counter()
        _heard(model, sound, chunk)[0].backward()
        seconds = time.perf_counter() - start

    if warm:
        step(sound[:50])  # what is loaded or made but once
    mib = peak_mib(step)
    return None if mib is None else (steps, mib, seconds)


def _told(mib: float, seconds: float) -> str:
    return f"{mib:,.0f} MiB {seconds:.2f} s"
