"""Training with Lightning: the module.

Needs ``pip install 'snnkernels[train]'``; nothing that ``import snnkernels`` loads imports this.
"""

from __future__ import annotations

from functools import partial
from math import inf

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Accuracy, MeanMetric, Metric

from snnkernels.core.checks import check_choice, check_whole
from snnkernels.core.state import State
from snnkernels.nn._stateful import StatefulLayer, detach, reset
from snnkernels.nn.losses import layer_penalties
from snnkernels.nn.synapses import IIRSynapse
from snnkernels.train.losses import LOSSES, Loss
from snnkernels.train.parts import RecipeError
from snnkernels.train.processes import gathered, own_part
from snnkernels.train.schedules import SCHEDULES, Schedule, rate_factor

PHASES = ("train", "val", "test")


def adamw(lr: float = 2e-3) -> OptimizerCallable:
    """Makes AdamW optimizers in PyTorch's one-kernel form, which on a CPU is the quick one."""
    return partial(torch.optim.AdamW, lr=lr, fused=True)


ADAMW = adamw()


class SpikingClassifier(L.LightningModule):
    """Train a network that gives one score per class, such as the firing rates of output neurons.

    Logs loss and accuracy of every epoch as train_loss, train_accuracy (while the weights change),
    val_loss and val_accuracy, and of a test as test_loss and test_accuracy. What a loss and a score
    are may be said anew in `evaluate`.

    Args:
        network: from samples `[N, *]` to what the loss takes, mostly scores `[N, classes]`.
        classes: number of classes. Default: 10.
        loss: gives (loss, scores) of the network's output and the labels; or the name of one of
            `snnkernels.train.losses.LOSSES`. Default: "mse", which suits firing rates.
        optimizer: makes the optimizer from the parameters. Default: AdamW with lr = 2e-3.
        schedule: of the learning rate after the warm-up, updated at every step; or the name of one
            of `snnkernels.train.schedules.SCHEDULES`. Default: "cosine".
        warmup: share of all steps in which the learning rate rises linearly. Default: 0.1.
        regulariser: weight in the loss of the potential regularisers of the network's layers, see
            `snnkernels.nn.losses.layer_penalties`; 0 leaves them out. Default: 0.
        filter_lr: learning rate of the coefficients of `IIRSynapse`, each of which acts on every
            spike of its input; they have no weight decay then. Default: None, that of the weights.
        carry_state: let layers with ``stateful=True`` start each training batch of an epoch where
            the last one ended, without its graph; so all batches must have one size, which must
            divide the samples. By default, and in validation always, every batch starts from zero.

    Raises:
        ValueError: an unknown loss or schedule, a warmup outside 0 ... 1, a negative weight, a
            number of classes < 1, or a learning rate <= 0.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: int = 10,
        loss: str | Loss = "mse",
        optimizer: OptimizerCallable = ADAMW,
        schedule: str | Schedule = "cosine",
        warmup: float = 0.1,
        regulariser: float = 0.0,
        filter_lr: float | None = None,
        carry_state: bool = False,
    ) -> None:
        super().__init__()
        check_whole("classes", classes)
        if not 0 <= regulariser < inf:
            raise ValueError(f"regulariser must be a weight >= 0; got {regulariser!r}")
        if isinstance(loss, str):
            check_choice("loss", loss, tuple(LOSSES))
            loss = LOSSES[loss]()
        if isinstance(schedule, str):
            check_choice("schedule", schedule, tuple(SCHEDULES))
            schedule = SCHEDULES[schedule]()
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup must be a share of the steps, 0 to 1; got {warmup!r}")
        if filter_lr is not None and not 0 < filter_lr < inf:
            raise ValueError(f"filter_lr must be None or a learning rate > 0; got {filter_lr!r}")
        self.network = network
        self.classes = classes
        self.loss = loss
        self.voters = getattr(loss, "voters", 1)
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup = warmup
        self.regulariser = regulariser
        self.filter_lr = filter_lr
        self.carry_state = carry_state
        self._carried: dict[str, State | None] = {}  # of training, while samples are validated
        self.meters = nn.ModuleDict(
            {
                f"{phase}_{name}": metric
                for phase in PHASES
                for name, metric in (
                    ("loss", MeanMetric()),
                    ("accuracy", Accuracy(task="multiclass", num_classes=classes)),
                )
            }
        )
        for meter in self.meters.values():
            # An epoch that is taken up in the middle goes on with the sums of its first part.
            meter.persistent(True)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Loss of one batch."""
        return self._measure("train", batch)

    def on_train_epoch_start(self) -> None:
        """Begin new sums and states; not called where an epoch is taken up in the middle."""
        self._reset_meters("train")
        reset(self.network)

    def on_validation_epoch_start(self) -> None:
        """Begin new sums, and put the states of training aside."""
        self._reset_meters("val")
        self._carried = self._states()

    def on_validation_epoch_end(self) -> None:
        """Bring the states of training back."""
        self._set_states(self._carried)
        self._carried = {}

    def on_fit_end(self) -> None:
        """Leave no state behind that the next call of the network would start from."""
        if not self.carry_state:
            reset(self.network)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the carried states, which are no part of ``state_dict``, and each process's sums."""
        checkpoint["meters"] = gathered(self.trainer, self.meters.state_dict())
        if self.carry_state:
            own = {name: state and state.detach() for name, state in self._states().items()}
            checkpoint["states"] = gathered(self.trainer, own)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on from them."""
        own = own_part(self.trainer, checkpoint["meters"])
        checkpoint["state_dict"] |= {f"meters.{name}": value for name, value in own.items()}
        states = own_part(self.trainer, checkpoint["states"]) if self.carry_state else {}
        for name, state in states.items():
            here = state and State(*(p if p is None else p.to(self.device) for p in state))
            self._set_states({name: here})

    def _states(self) -> dict[str, State | None]:
        layers = self.network.named_modules()
        return {name: m.state for name, m in layers if isinstance(m, StatefulLayer)}

    def _set_states(self, states: dict[str, State | None]) -> None:
        for name, state in states.items():
            self.network.get_submodule(name).state = state

    def _reset_meters(self, phase: str) -> None:
        for name, meter in self.meters.items():
            if name.startswith(phase):
                meter.reset()

    def on_test_epoch_start(self) -> None:
        """Begin new sums."""
        self._reset_meters("test")

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Loss and accuracy on samples that are not trained on."""
        self._measure("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Loss and accuracy on samples that nothing was chosen by."""
        self._measure("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], _: int) -> tuple[Tensor, Tensor]:
        """Labels `[N]` and scores `[N, classes]` of a batch."""
        reset(self.network)
        return batch[1], self.evaluate(*batch)[1]

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss of a batch, and a score of every class `[N, classes]`, None where not measured."""
        out = self(x)
        if out.shape[-1] != self.classes * self.voters:
            raise RecipeError(
                f"network must give {self.classes * self.voters} outputs for {self.classes} "
                f"classes of the data; got {list(out.shape)}"
            )
        return self.loss(out, y)

    def _measure(self, phase: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        start = detach if self.carry_state and phase == "train" else reset
        start(self.network)
        loss, scores = self.evaluate(*batch)
        if self.regulariser:
            loss = loss + self.regulariser * layer_penalties(self.network)
        measured = {"loss": (loss.detach(),)}
        if scores is not None:
            measured["accuracy"] = (scores.detach(), batch[1])
        for name, values in measured.items():
            meter: Metric = self.meters[f"{phase}_{name}"]
            meter.update(*values)
            self.log(f"{phase}_{name}", meter, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> dict:
        """The optimizer, and its learning rate as a function of the step."""
        optimizer = self.optimizer(self.parameter_groups())
        factor = partial(
            rate_factor,
            total=max(1, int(self.trainer.estimated_stepping_batches)),
            schedule=self.schedule,
            warmup=self.warmup,
            epochs=self.trainer.max_epochs,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def parameter_groups(self) -> list[dict]:
        """All parameters, the synapses' apart where they have a learning rate of their own."""
        synapses = [m for m in self.network.modules() if isinstance(m, IIRSynapse)]
        filters = [] if self.filter_lr is None else [p for m in synapses for p in m.parameters()]
        apart = {id(p) for p in filters}
        groups = [{"params": [p for p in self.parameters() if id(p) not in apart]}]
        if filters:
            groups.append({"params": filters, "lr": self.filter_lr, "weight_decay": 0.0})
        return groups
