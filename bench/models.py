"""The training step of S-ResNet38 against the loop over time that one writes from the paper.

    python -m bench models

All run the same weights on the same batch: one network applies every layer to all steps at once,
the loops apply all layers to one step after the other: a convolution, a batch norm of that step,
a neuron of a few tensor operations. "loop" leaves images as they come, "loop, channels_last" asks
for that memory format. PyTorch adds up convolutions and statistics of the two formats in different
orders, so spikes at the threshold differ between the two loops; the network works in channels_last
and must give the logits of that loop within 1e-4. Each has a process of its own, since what one
leaves to malloc would change the time of the next; they run in turns, one at a time. On a CPU each
runs twice: with malloc's defaults, and keeping freed memory (`snnkernels.keep_freed_memory`), as
the training commands do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.common import markdown, save
from snnkernels import keep_freed_memory, models
from snnkernels.cli._timing import Timings, device_events, interleave
from snnkernels.nn.norm import BNTT


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return g * 0.3 * (1 - u.abs()).clamp(min=0)


class StepLoop(nn.Module):
    """S-ResNet (s2s, BNTT, 32 pixels) as a loop over time, with the weights of an `SResNet`."""

    def __init__(self, net: nn.Module, channels_last: bool = True) -> None:
        super().__init__()
        self.net = net
        self.memory = torch.channels_last if channels_last else torch.contiguous_format
        self.norms = nn.ModuleDict()
        for name, module in net.named_modules():
            if isinstance(module, BNTT):
                self.norms[name.replace(".", "_")] = nn.ModuleList(
                    self._norm(module, t) for t in range(module.steps)
                )

    @staticmethod
    def _norm(bntt: BNTT, t: int) -> nn.BatchNorm2d:
        norm = nn.BatchNorm2d(bntt.channels, eps=bntt.eps, momentum=bntt.momentum)
        norm.weight.data.copy_(bntt.weight[t])
        norm.register_parameter("bias", None)
        return norm.to(bntt.weight)

    def _current(self, name: str, conv: nn.Module, x: Tensor, t: int) -> Tensor:
        return self.norms[name][t](conv.module(x))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images `[N, C, H, W]`."""
        mem: dict[str, Tensor] = {}
        image = image.contiguous(memory_format=self.memory)

        def neuron(name: str, current: Tensor) -> Tensor:
            v = 0.874 * mem[name] + current if name in mem else current
            u = v / 1.0 - 1.0
            s = _Fire.apply(u)
            reset = torch.zeros_like(v)
            reset[u >= 0] = 1.0
            mem[name] = v - reset
            return s

        out = 0
        for t in range(self.net.steps):
            x = neuron("norm1", self._current("norm1", self.net.conv1, image, t))
            for i, block in enumerate(self.net.blocks):
                at = f"blocks_{i}_"
                s = neuron(at + "1", self._current(at + "norm1", block.conv1, x, t))
                s = neuron(at + "2", self._current(at + "norm2", block.conv2, s, t))
                if block.shortcut is not None:
                    x = self._current(at + "shortcut_1", block.shortcut[0], x, t)
                x = s + x
            out = out + F.linear(x.mean((-2, -1)), self.net.fc.module.weight)
        return out / self.net.steps


WHICH = ("loop", "loop, channels_last", "fused")
# How far apart logits may be. Convolutions on a GPU depend on the batch: there, float64 tells.
CLOSE = {"loop, channels_last": 1e-4, "loop, float64, 5 steps": 1e-9}


def train_step(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward pass; gives the logits."""
    net.zero_grad(set_to_none=True)
    logits = net(images)
    F.cross_entropy(logits, labels).backward()
    return logits.detach()


def build(which: str, options: dict, device: str = "cpu", dtype=torch.float32) -> nn.Module:
    """One of WHICH, all with equal weights."""
    torch.manual_seed(0)
    net = models.create("s_resnet38", **options).to(device, dtype)
    if which != "fused":
        net = StepLoop(net, channels_last="channels_last" in which)
    return net.to(device, dtype)


def batch(n: int, device: str = "cpu", dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Random images with the statistics of normalised ones, and labels."""
    g = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 32, 32, generator=g).to(device, dtype)
    return images, torch.randint(10, (n,), generator=g).to(device)


def peak_mib(which: str, options: dict, n: int, mapped: bool) -> float:
    """What two training steps add to the resident memory of a fresh process, at its peak.

    Args:
        which: one of WHICH.
        options: of the network.
        n: batch size.
        mapped: give memory back to the system as soon as it is free, so that the peak is that of
            what is in use; False leaves malloc at its defaults, with the holes that it keeps.
    """
    call = [sys.executable, __file__, "--peak-of", which, "--batch", str(n)]
    call += ["--options", json.dumps(options), "--threads", str(torch.get_num_threads())]
    environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"} if mapped else None
    done = subprocess.run(call, check=True, capture_output=True, text=True, env=environ)
    return float(done.stdout)


def _print_peak(which: str, options: dict, n: int) -> None:
    train_step(build(which, {**options, "steps": 1}), *batch(2))  # what loads but once
    net, data = build(which, options), batch(n)
    before = _resident("VmRSS")
    for _ in range(2):
        train_step(net, *data)
    print(_resident("VmHWM") - before)


def _resident(what: str) -> float:
    """MiB now ("VmRSS") or at most since this program began ("VmHWM").

    getrusage's ru_maxrss would start at what the parent process held.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s*(\d+) kB", status)[1]) / 1024


def logits_apart(options: dict, n: int, device: str) -> dict[str, float]:
    """The largest difference of the fused network's logits to those of each loop."""
    double = device, torch.float64
    small = {**options, "backend": "torch", "steps": min(options.get("steps", 50), 5)}
    exact = [train_step(build(w, small, *double), *batch(n, *double)) for w in ("fused", "loop")]
    apart = {"loop, float64, 5 steps": (exact[0] - exact[1]).abs().max().item()}
    logits = {w: train_step(build(w, options, device), *batch(n, device)) for w in WHICH}
    for which in WHICH[:2]:
        name = which if device == "cpu" else f"{which}, on a GPU"
        apart[name] = (logits["fused"] - logits[which]).abs().max().item()
    return apart


def _serve(pipe, which: str, keep: bool, options: dict, n: int, threads: int) -> None:
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    net, data = build(which, options), batch(n)
    while pipe.recv():
        train_step(net, *data)
        pipe.send(True)


def in_turns(options: dict, n: int, seconds: float) -> Timings:
    """Training steps on the CPU, by network and by whether freed memory is kept."""
    context, calls, processes = multiprocessing.get_context("spawn"), {}, []
    for which, keep in itertools.product(WHICH, (False, True)):
        ours, theirs = context.Pipe()
        arguments = (theirs, which, keep, options, n, torch.get_num_threads())
        processes.append(context.Process(target=_serve, args=arguments, daemon=True))
        processes[-1].start()
        calls[which, keep] = lambda pipe=ours: (pipe.send(True), pipe.recv())
    try:
        return interleave(calls, seconds, 3, twice=("fused", False))
    finally:
        for process in processes:
            process.terminate()


def on_gpu(options: dict, n: int, seconds: float) -> tuple[Timings, dict[str, float]]:
    """Times and peaks on a GPU."""
    nets = {which: build(which, options, "cuda") for which in WHICH}
    data = batch(n, "cuda")
    peaks = {}
    for which, net in nets.items():
        torch.cuda.empty_cache()
        train_step(net, *data)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train_step(net, *data)
        peaks[which] = (torch.cuda.max_memory_allocated() - before) / 2**20

    runs = {(which, False): lambda n=net: train_step(n, *data) for which, net in nets.items()}
    times = interleave(runs, seconds, twice=("fused", False), clock=device_events)
    return times, peaks


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--options", type=json.loads, default={}, help="of the network, as JSON")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak-of", choices=WHICH, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return _print_peak(args.peak_of, args.options, args.batch)

    apart = logits_apart(args.options, args.batch, args.device)
    print(f"largest difference of the logits to those of {apart}")
    for which, limit in CLOSE.items():
        if apart.get(which, 0.0) > limit:
            parser.exit(1, f"error: {which}: more than {limit} apart; nothing was timed\n")

    if args.device == "cuda":
        times, peaks = on_gpu(args.options, args.batch, args.seconds)
        held = None
    else:
        times = in_turns(args.options, args.batch, args.seconds)
        peaks = {w: peak_mib(w, args.options, args.batch, True) for w in WHICH}
        held = {w: peak_mib(w, args.options, args.batch, False) for w in WHICH}
    rows = []
    for which in WHICH:
        row = {"S-ResNet38, training step": which}
        for keep, more in ((False, ""), (True, ", memory kept")):
            there = (which, keep) in times.seconds
            row[f"ms{more}"] = 1e3 * times.median((which, keep)) if there else None
            for loop in WHICH[:2]:
                ratio = times.ratio((loop, keep), (which, keep)) if there else None
                row[f"{loop} / this{more}"] = ratio
        row["peak MiB"] = peaks[which]
        row |= {f"peak / {loop}": peaks[which] / peaks[loop] for loop in WHICH[:2]}
        rows.append(row | {"peak MiB, malloc's defaults": held and held[which]})
    print(markdown(rows))
    results = {
        "batch": args.batch,
        "options": args.options,
        "rows": rows,
        "rounds": len(times.seconds["loop", False]),
        "noise": times.noise,
        "load_average": os.getloadavg(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith("OMP_")},
        "quartiles_ms": {
            which + (", memory kept" if keep else ""): [
                1e3 * q for q in times.quartiles((which, keep))
            ]
            for which, keep in times.seconds
        },
        "logits_apart": apart,
    }
    print(save("models", " ".join(["python -m bench models", *sys.argv[1:]]), results, args.out))


if __name__ == "__main__":
    main()
