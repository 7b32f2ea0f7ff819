"""A run that is stopped and taken up ends as one that was never stopped."""

from __future__ import annotations

import os
import random
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from snnkernels import LIF, LeakyReadout
from snnkernels.nn import encode
from snnkernels.nn.synapses import IIRSynapse
from snnkernels.train import runs
from snnkernels.train.batches import InMemoryData
from snnkernels.train.data import Dataset, Samples
from snnkernels.train.fit import fit
from snnkernels.train.module import SpikingClassifier

EPOCHS, STEPS = 2, 3  # of each epoch


class Noise(nn.Module):
    """Draws from the global generators of numpy and Python."""

    def forward(self, x):
        return x + 0.1 * float(np.random.rand()) + 0.1 * random.random()


def network(stateful: bool = False, hidden: int = 16) -> nn.Sequential:
    return nn.Sequential(
        encode.Bernoulli(6, seed=1),
        nn.Linear(12, hidden),
        IIRSynapse([0.5], [0.5], stateful=stateful),
        LIF(decay=0.8, v_threshold=0.3, stateful=stateful),
        nn.Dropout(0.2),
        Noise(),
        nn.Linear(hidden, 2),
        LeakyReadout(stateful=stateful),
    )


def data(batch_size: int = 8) -> InMemoryData:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch_size * STEPS + 8, 12, generator=generator)
    y = (x.sum(1) > 6).long()
    parts = (Samples(x[part], y[part]) for part in (slice(8, None), slice(8)))
    return InMemoryData(Dataset(*parts, 2), batch_size=batch_size)


class CtrlC(L.Callback):
    """Presses it in a step, or while samples are validated."""

    def __init__(self, step: int, validating: bool = False) -> None:
        self.step, self.validating = step, validating

    def press(self, trainer, validating):
        if trainer.global_step == self.step and validating == self.validating:
            os.kill(os.getpid(), signal.SIGINT)

    def on_train_batch_end(self, trainer, *_):
        self.press(trainer, False)

    def on_validation_batch_end(self, trainer, *_):
        self.press(trainer, True)


def train(directory: Path, *callbacks, made=network, **options):
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    module = SpikingClassifier(made(), classes=2, loss="cross_entropy", **options)
    history, complete = fit(
        module, data(), directory=directory, epochs=EPOCHS, show=False, callbacks=callbacks
    )
    return module.network, history, complete


def weights(trained) -> torch.Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in trained[0].parameters()])


def elsewhere() -> None:
    """What a process that takes a run up has drawn before."""
    torch.rand(5)
    np.random.rand(5)
    random.random()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train(tmp_path_factory.mktemp("whole"))
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("step", "validating"), [*((step, False) for step in range(1, EPOCHS * STEPS)), (STEPS, True)]
)
def test_any_stop_leaves_all_numbers_as_they_were(whole, tmp_path, step, validating):
    _, _, complete = train(tmp_path, CtrlC(step, validating))
    assert not complete
    elsewhere()
    taken_up = train(tmp_path)
    assert taken_up[2] and taken_up[1].steps == whole[1].steps
    assert torch.equal(weights(taken_up), weights(whole))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_generators_of_a_gpu_go_on(tmp_path):
    expected = train(tmp_path / "whole")
    for step in range(1, EPOCHS * STEPS):
        train(tmp_path / str(step), CtrlC(step))
        torch.rand(5, device="cuda")
        taken_up = train(tmp_path / str(step))
        assert torch.equal(weights(taken_up), weights(expected)), step


# --- states --------------------------------------------------------------------------------------


def stateful():
    return network(stateful=True)


def test_states_are_not_carried_between_batches(whole, tmp_path):
    trained = train(tmp_path, made=stateful)
    assert trained[1].steps == whole[1].steps
    assert torch.equal(weights(trained), weights(whole))
    assert all(getattr(layer, "state", None) is None for layer in trained[0])


def test_states_are_carried_where_asked(whole, tmp_path):
    class Look(L.Callback):
        """The state that each training batch starts from, and each one of validation."""

        def __init__(self):
            self.starts = {True: [], False: []}

        def setup(self, trainer, module, stage):
            def look(layer, args):
                self.starts[module.training].append(layer.state)

            module.network[3].register_forward_pre_hook(look)

    look = Look()
    carried = train(tmp_path / "whole", look, made=stateful, carry_state=True)
    assert [start is None for start in look.starts[True]] == [True, False, False] * EPOCHS
    assert not any(start and start.v.requires_grad for start in look.starts[True])
    assert all(start is None for start in look.starts[False]) and len(look.starts[False]) == EPOCHS
    assert carried[1].steps[0] == whole[1].steps[0] and carried[1].steps[1] != whole[1].steps[1]
    for step in (1, 3, 4):
        folder = tmp_path / str(step)
        train(folder, CtrlC(step), made=stateful, carry_state=True)
        taken_up = train(folder, made=stateful, carry_state=True)
        assert torch.equal(weights(taken_up), weights(carried)), step


# --- files ---------------------------------------------------------------------------------------


@contextmanager
def files_up_to(size: int):
    """The system refuses to make a file larger than that, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint(whole, tmp_path):
    train(tmp_path, CtrlC(2))
    kept = (tmp_path / runs.LAST).read_bytes()
    with files_up_to(4096), pytest.raises(OSError, match="last.ckpt") as told:
        train(tmp_path)
    assert told.value.filename == str(tmp_path / runs.LAST)
    assert [path.name for path in tmp_path.iterdir()] == [runs.LAST]
    assert (tmp_path / runs.LAST).read_bytes() == kept
    assert torch.equal(weights(train(tmp_path)), weights(whole))


def test_a_folder_that_cannot_be_made_is_told_before_training(tmp_path):
    (tmp_path / "file").touch()
    taken = []

    class Count(L.Callback):
        def on_train_batch_start(self, *_):
            taken.append(1)

    with pytest.raises(OSError, match="file"):
        train(tmp_path / "file" / "run", Count())
    assert not taken


def cut(file: bytes) -> bytes:
    return file[: len(file) // 2]


def flipped(file: bytes) -> bytes:
    place = file.index(b"state_dict")
    return file[:place] + bytes([file[place] ^ 1]) + file[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [cut, flipped, lambda file: b"", lambda file: b"hello\n", lambda file: file[100:]],
    ids=["cut", "one bit", "empty", "text", "beginning lost"],
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    train(tmp_path, CtrlC(2))
    path = tmp_path / runs.LAST
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(runs.RunError, match="damaged") as told:
        train(tmp_path)
    assert str(path) in str(told.value) and "--fresh" in str(told.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {}, "epoch": 3}, r"no checkpoint of a run.*'random', 'settings'"),
        ([1, 2], "no checkpoint of a run"),
        (dict.fromkeys(("settings", "random", "meters", "epoch", "global_step"), 1)
         | {"state_dict": {}}, "of another network"),
    ],
    ids=["another program", "a list", "another network"],
)  # fmt: skip
def test_a_foreign_checkpoint_is_named(tmp_path, content, said):
    path = tmp_path / runs.LAST
    torch.save(content, path)
    with pytest.raises(runs.RunError, match=said) as told:
        train(tmp_path)
    assert str(path) in str(told.value)


def test_a_checkpoint_of_other_layers_is_named(tmp_path):
    train(tmp_path, CtrlC(2))
    with pytest.raises(runs.RunError, match=r"another network, 3 of its weights.*network.1.bias"):
        train(tmp_path, made=lambda: network(hidden=15))


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True])
def test_epochs_are_checked_before_anything_is_written(tmp_path, epochs):
    module = SpikingClassifier(network(), classes=2)
    with pytest.raises(ValueError, match=f"epochs must be a whole number >= 1; got {epochs}"):
        fit(module, data(), directory=tmp_path / "run", epochs=epochs)
    assert not list(tmp_path.iterdir())
