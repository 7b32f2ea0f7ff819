"""Two processes train as one does on the joint batch, and go on where they were stopped."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

L = pytest.importorskip("lightning", reason="needs snnkernels[train]")

from snnkernels import LIF, LeakyReadout  # noqa: E402
from snnkernels.train import runs  # noqa: E402
from snnkernels.train.batches import Batches, InMemoryData  # noqa: E402
from snnkernels.train.data import Dataset, Samples  # noqa: E402
from snnkernels.train.fit import TrainerOptions, fit  # noqa: E402
from snnkernels.train.module import SpikingClassifier  # noqa: E402

PROCESSES, STEPS, EPOCHS = 2, 3, 2
TWO = TrainerOptions(accelerator="cpu", devices=PROCESSES, strategy="ddp")


class Watch(L.Callback):
    """Notes gradients and states; presses Ctrl-C in a step."""

    def __init__(self, stop_at: int | None) -> None:
        self.stop_at, self.gradients, self.states = stop_at, [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))

    def on_train_batch_end(self, trainer, module, *_):
        self.states.append(module.network[1].state.v.clone())
        if trainer.global_step == self.stop_at and trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGINT)


def data(batch_size: int) -> InMemoryData:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16 * STEPS + 8, 6, 12, generator=generator)
    y = (x.sum((1, 2)) > 36).long()
    parts = (Samples(x[part], y[part]) for part in (slice(8, None), slice(8)))
    return InMemoryData(Dataset(*parts, 2), batch_size=batch_size)


class First(nn.Module):
    """Time first."""

    def forward(self, x):
        return x.transpose(0, 1)


def train(directory: Path, batch_size: int, trainer=None, stop_at=None, noise: float = 0.0):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(First(), nn.Linear(12, 16)),
        LIF(decay=0.8, v_threshold=0.3, stateful=True),
        nn.Dropout(noise),
        nn.Linear(16, 2),
        LeakyReadout(stateful=True),
    )
    optimizer = torch.optim.SGD
    module = SpikingClassifier(
        network, classes=2, loss="cross_entropy", optimizer=lambda p: optimizer(p, lr=0.1),
        carry_state=True,
    )  # fmt: skip
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    watch = Watch(stop_at)
    history, complete = fit(
        module, data(batch_size), directory=directory, epochs=EPOCHS, show=False,
        callbacks=[watch], trainer=trainer,
    )  # fmt: skip
    return {
        "gradients": watch.gradients,
        "states": watch.states,
        "steps": history.steps,
        "complete": complete,
        "weights": torch.cat([p.detach().flatten() for p in module.parameters()]),
    }


def process(rank: int, port: int, directory: Path, options: dict) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(train(directory / "run", 8, TWO, **options), directory / f"{rank}.pt")


def train_twice(directory: Path, **options) -> list[dict]:
    """The result of each of two processes."""
    directory.mkdir(exist_ok=True)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    torch.multiprocessing.start_processes(
        process, (port, directory, options), nprocs=PROCESSES, start_method="fork"
    )
    return [torch.load(directory / f"{k}.pt", weights_only=True) for k in range(PROCESSES)]


def test_processes_share_the_batches():
    x = torch.arange(25)
    parts = [Batches(x, x, 4, process=k, processes=2) for k in range(2)]
    taken = [[x.tolist() for x, _ in part] for part in parts]
    assert [len(part) for part in parts] == [len(batches) for batches in taken] == [3, 3]
    for left, right, joint in zip(*taken, x[:24].split(8), strict=True):
        assert sorted(left + right) == joint.tolist()


def test_gradients_are_those_of_the_joint_batch(tmp_path):
    joint = train(tmp_path / "one", 16)
    left, right = train_twice(tmp_path / "two")
    assert len(left["gradients"]) == len(joint["gradients"]) == EPOCHS * STEPS
    assert left["steps"] == right["steps"] == pytest.approx(joint["steps"], rel=1e-6)
    for k in range(STEPS):
        a, b, expected = (result["gradients"][k] for result in (left, right, joint))
        assert torch.equal(a, b)
        assert (a - expected).norm() <= 1e-6 * expected.norm()
    assert torch.equal(left["weights"], right["weights"])
    assert not torch.equal(left["states"][0], right["states"][0])
    states = torch.stack([left["states"][0], right["states"][0]], 1).flatten(0, 1)
    torch.testing.assert_close(states, joint["states"][0])


def test_two_processes_go_on_where_they_were_stopped(tmp_path):
    whole = train_twice(tmp_path / "whole", noise=0.3)
    stopped = train_twice(tmp_path / "parts", noise=0.3, stop_at=2)
    assert not any(result["complete"] for result in stopped)
    assert (tmp_path / "parts" / "run" / runs.LAST).exists()
    taken_up = train_twice(tmp_path / "parts", noise=0.3)
    for k, result in enumerate(taken_up):
        assert result["complete"] and result["steps"] == whole[k]["steps"]
        assert torch.equal(result["weights"], whole[k]["weights"])
        assert torch.equal(result["states"][-1], whole[k]["states"][-1])
    assert not torch.equal(*(result["states"][-1] for result in whole))
