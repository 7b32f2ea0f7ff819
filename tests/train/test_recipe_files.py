"""Every recipe under recipes/ names its experiment and fits its data; some run for an epoch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("snnkernels.train.module", reason="needs snnkernels[train]")

from snnkernels.cli import main  # noqa: E402
from snnkernels.cli._training import parse  # noqa: E402
from snnkernels.cli.search import add_space  # noqa: E402
from snnkernels.models._blocks import SequenceNetwork  # noqa: E402
from snnkernels.train.recipe import build  # noqa: E402
from tests.train import files  # noqa: E402

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml"))
NEEDED = {
    "recordings: cifar10_dvs": ("dv_processing",),
    "recordings: ": ("tonic", "aedat"),
    "japanese_vowels}": ("sktime",),
    "spoken_digits,": ("soundfile",),
    "tidigits,": ("soundfile",),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with data/, as the recipes look for it."""
    home = tmp_path_factory.mktemp("home")
    made = {
        "mnist": files.idx,
        "cifar-10-batches-bin": files.cifar10,
        "cifar-100-binary": files.cifar100,
        "imagenet16_10": files.pictures,
        "ucf101": lambda folder: files.pictures(folder, clips=True, classes=101, train=1),
        "hmdb51": lambda folder: files.pictures(folder, clips=True, classes=51, train=1),
        "n_mnist": files.n_mnist,
        "dvs_gesture": files.dvs_gesture,
        "spoken_digits": files.spoken_digits,
        "tidigits": files.tidigits,
        "auslan": files.auslan,
    }
    if find_spec("dv_processing"):
        made["cifar10_dvs"] = files.cifar10_dvs
    for name, make in made.items():
        make(home / "data" / name)
    return home


def words(name: str) -> list[str]:
    text = (FOLDER / name).read_text()
    for part, packages in NEEDED.items():
        for package in packages if part in text else ():
            pytest.importorskip(package)
    return ["--config", str(FOLDER / name)]


def test_there_are_recipes_of_all_papers():
    assert {path.split("/")[0] for path in RECIPES} == {
        *("samadzadeh", "vicente_sola", "fang", "stoeckl", "rsnn")
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_data(name, home, monkeypatch):
    monkeypatch.chdir(home)
    options = ["--validation", "0.3"]
    if "auslan" in name:  # one sign of each class, none to hold out
        options = ["--validation", "0"]
    if "ucf101" in name or "hmdb51" in name:
        options = ["--validation", "0", "--transforms", "[flip]"]
    recipe, _ = parse("fit", "", [*words(name), *options], add_space if "search" in name else None)
    first = (FOLDER / name).read_text().splitlines()[0]
    assert any(word in first for word in ("table", "fig.", "sec.")), "it must name the experiment"
    assert recipe.directory == f"runs/{name.removesuffix('.yaml')}"
    module, data = build(recipe)
    inputs, network = module.network
    last = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert last.out_features in (data.dataset.classes, 10 * data.dataset.classes)
    for x, y in (data.dataset.train, data.dataset.test):
        shown = inputs(x[torch.tensor([0])])
        if isinstance(network, SequenceNetwork):
            assert network.sequence(shown).shape[1] == 1  # it takes this shape and these steps
        assert y.max() < data.dataset.classes


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("samadzadeh/conv_snn", "network.channels=[2,2] batch_size=50"),
        ("samadzadeh/conv_snn", "network.channels=[2,2] data.kind=4 network.num_classes=10 "
         "hybrid=1"),
        ("vicente_sola/fine_tuning", "network.name=s_resnet8 network.filters=4 network.steps=3 "
         "start.recipe.network={name:s_resnet8,num_classes:100,filters:4,steps:3}"),
        ("vicente_sola/cifar100_plif", "network.name=s_resnet8 network.filters=4 network.steps=3 "
         "code.steps=3"),
        ("fang/n_mnist", "network.name=4C3-P4-10 network.steps=4 data.steps=4"),
        ("fang/spoken_digits", "epochs=1"),
        ("stoeckl/tscnn", "limit=20"),
        ("stoeckl/wscnn", "network.width=2"),
        ("rsnn/rsnn_cla_dvs_gesture", "network.channels=4 network.size=32 network.steps=3 "
         "data.size=32 data.steps=3 "
         "start.recipe.network={name:rsnn_features,features:cla,size:32,steps:3}"),
    ],
)  # fmt: skip
def test_a_recipe_runs(name, changes, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    given = {"epochs": "1", "validation": "0.5", "limit": "40", "directory": str(tmp_path)}
    given |= dict(change.split("=") for change in changes.split())
    options = (
        word for key, value in given.items() for word in (f"--{key}", value.replace(":", ": "))
    )
    assert main(["fit", *words(f"{name}.yaml"), *options]) == 0
    said = capsys.readouterr().out
    assert "epoch 1/1" in said and "| seed 0 | " in said and "nan" not in said
