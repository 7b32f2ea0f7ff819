"""The command line for strangers: help, mistakes, files that are not what they should be."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("snnkernels.train.module", reason="needs snnkernels[train]")

from snnkernels.cli import COMMANDS, main  # noqa: E402
from tests.train import files  # noqa: E402


def fails(words: list[str], capsys) -> tuple[int, str]:
    """The status of a command and the one line that it says."""
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    assert status and said.err.count("\n") == 1 and "Traceback" not in said.err, said.err
    return status, said.err


# --- words ---------------------------------------------------------------------------------------


def test_alone_it_prints_its_help(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)


def test_help_needs_no_docstrings():
    code = (
        "from snnkernels.cli import COMMANDS, main\n"
        "for words in ([], *([name, '--help'] for name in COMMANDS)):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "assert main(['info']) == 0"
    )
    plain, optimised = (
        subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True)
        for flags in ([], ["-OO"])
    )
    assert optimised.returncode == 0, optimised.stderr
    for name in COMMANDS:
        summary = import_module(f"snnkernels.cli.{name.replace('-', '_')}").HELP.split(".")[0]
        assert " ".join(summary.split()) in " ".join(optimised.stdout.split())
    assert optimised.stdout.count("usage:") == plain.stdout.count("usage:") == 1 + len(COMMANDS)


def numeric_options():
    for name in COMMANDS:
        module = import_module(f"snnkernels.cli.{name.replace('-', '_')}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        for action in parser._actions:
            if action.type not in (None, Path):
                yield name, action.option_strings[0]


@pytest.mark.parametrize(("command", "option"), list(numeric_options()))
def test_a_wrong_number_is_named_with_its_option(command, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [command, "folder"] if command == "spoken-digits" else [command]
    for value in ("-1", "nan", "inf", "1e400", "many", "", *(() if option == "--seed" else "0")):
        status, said = fails([*words, option, value], capsys)
        assert status == 2 and option in said and repr(value) in said
        assert "must be a whole number" in said or "must be a number > 0" in said
    assert not list(tmp_path.iterdir())


def test_all_numbers_are_covered():
    options = set(numeric_options())
    for command in ("demo", "associative", "japanese-vowels", "spoken-digits"):
        assert {(command, "--epochs"), (command, "--seed")} <= options
    assert {("associative", "--lr"), ("japanese-vowels", "--batch"), ("tune", "--rounds")} < options


def test_wrong_words(capsys):
    for words, said in (
        (["dance"], "demo"),
        (["--loud"], "--loud"),
        (["info", "--loud"], "--loud"),
        (["demo", "--backend", "gpu"], "'auto', "),
        (["japanese-vowels", "--network", "gru"], "lstm"),
        (["spoken-digits"], "folder"),
    ):
        status, line = fails(words, capsys)
        assert status == 2 and said in line


# --- recipes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist(tmp_path_factory) -> Path:
    return files.idx(tmp_path_factory.mktemp("mnist"))


RECIPE = """\
directory: {directory}
epochs: 1
data: {{name: mnist, folder: {folder}}}
network: {{name: conv_snn, channels: [2, 2], steps: 1}}
optimizer: {{name: sgd, lr: 0.1}}
transforms: [flip, {{name: crop, padding: 2}}]
batch_size: 50
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs: 1", "epochs: 0", r"epochs must be a whole number >= 1; got 0"),
        ("epochs: 1", "epochs: 1.5", r"epochs.*1.5"),
        ("epochs: 1", "epoch: 1", r"epoch"),
        ("epochs: 1", "epochs: [", r"mistake.yaml.*parsing"),
        ("epochs: 1", "", r"required: epochs"),
        ("steps: 1", "steps: 0", r"network conv_snn: steps must be a whole number >= 1; got 0"),
        ("steps: 1", "steps: many", r"network conv_snn.*steps.*many"),
        ("steps: 1", "stepz: 1", r"network conv_snn has no option 'stepz'; its options:.*steps"),
        ("conv_snn", "conv_net", r"network: name must be one of conv_snn,.*got 'conv_net'"),
        ("conv_snn", "torch.nn.Net", r"network must be.*package.module.Name; got 'torch.nn.Net'"),
        ("lr: 0.1", "lr: -0.1", r"learning rate: -0.1"),
        ("lr: 0.1", "rate: 0.1", r"optimizer sgd has no option 'rate'; its options:.*lr.*momentum"),
        ("sgd", "lion", r"optimizer must be one of adam, adamw, sgd.*got 'lion'"),
        ("batch_size: 50", "batch_size: 0", r"batch_size must be a whole number >= 1; got 0"),
        ("mnist,", "letters,", r"data must be one of.*mnist.*got 'letters'"),
        ("name: mnist,", "", r"data must have a name, one of handwritten.*"),
        ("folder:", "place:", r"data mnist has no option 'place'; its options: folder"),
        ("flip", "turn", r"transforms must be one of normalise, flip.*got 'turn'"),
        ("padding: 2", "padding: 0", r"transforms crop: padding must be.*>= 1; got 0"),
        ("epochs: 1", "epochs: 1\nloss: hinge", r"loss must be one of mse,.*got 'hinge'"),
        ("epochs: 1", "epochs: 1\nloss: {name: van_rossum, tau: 0}", r"tau must be.*got 0"),
        ("epochs: 1", "epochs: 1\nschedule: {name: linear, floor: 2}", r"floor.*got 2"),
        ("epochs: 1", "epochs: 1\nwarmup: 2", r"warmup.*got 2"),
        ("epochs: 1", "epochs: 1\nvalidation: 1", r"validation must be.*got 1"),
        ("epochs: 1", "epochs: 1\nlimit: -3", r"limit must be a whole number >= 1; got -3"),
        ("conv_snn, channels: [2, 2], steps: 1}", "4C3-10, input_shape: [1, 28, 28]}\nhybrid: 1",
         r"hybrid must be 0.*got 1 for 4C3-10"),
        ("epochs: 1", "epochs: 1\nstart: {leave: [fc]}", r"start must have a recipe or weights"),
        ("epochs: 1", "epochs: 1\nstart: {recipe: {epoch: 2}}", r"start.recipe.*epochs.*epoch"),
        ("epochs: 1", "epochs: 1\ntrainer: {precision: 8}", r"precision.*16-mixed.*8"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe(old, new, said, tmp_path, mnist, capsys):
    recipe = tmp_path / "mistake.yaml"
    text = RECIPE.format(directory=tmp_path / "run", folder=mnist)
    assert old in text
    recipe.write_text(text.replace(old, new))
    status, line = fails(["fit", "--config", str(recipe)], capsys)
    assert status == 2
    assert re.search(said, line) and str(recipe) in line, line
    assert [path.name for path in tmp_path.iterdir()] == ["mistake.yaml"]


def test_a_recipe_that_is_not_there(tmp_path, capsys):
    status, line = fails(["fit", "--config", str(tmp_path / "nowhere.yaml")], capsys)
    assert status == 2 and "nowhere.yaml" in line
    assert fails(["fit"], capsys)[0] == 2


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_help_of_a_recipe_lists_our_names(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = capsys.readouterr().out
    for name in ("s_resnetN", "cifar100", "normalise", "latency", "van_rossum", "exponential"):
        assert name in said
    assert "torch.nn" not in said and len(said.splitlines()) < 200


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_run_that_is_not_there_is_named(command, tmp_path, mnist, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(directory=tmp_path / "nowhere", folder=mnist))
    status, line = fails([command, "--config", str(recipe)], capsys)
    assert status == 1 and "nowhere" in line


def test_files_that_are_not_there_are_named(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(directory=tmp_path / "run", folder="nowhere"))
    status, line = fails(["fit", "--config", str(recipe)], capsys)
    assert status == 1 and "not found in nowhere. Put there" in line
    assert not (tmp_path / "run").exists()


def test_a_recording_that_is_damaged_is_named(tmp_path, capsys):
    pytest.importorskip("tonic", reason="needs snnkernels[events]")
    files.n_mnist(tmp_path / "N")
    for path in (tmp_path / "N" / "Train").rglob("*.bin"):
        path.write_bytes(path.read_bytes()[:-2])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"directory: {tmp_path / 'run'}\nepochs: 1\nvalidation: 0.5\n"
        f"data: {{name: event_recordings, recordings: n_mnist, folder: {tmp_path / 'N'}}}\n"
        "network: {name: conv_snn, in_channels: 2, size: 34, channels: [1, 1]}\n"
    )
    status, line = fails(["fit", "--config", str(recipe), "--network.size", "36"], capsys)
    assert status == 1 and ".bin is damaged" in line


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small associative memory, trained."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(words(folder)) == 0
    return folder


def words(folder: Path) -> list[str]:
    given = {"--epochs": 1, "--early": 1, "--versions": 1, "--steps": 20, "--out": folder}
    return ["associative", *(str(word) for pair in given.items() for word in pair)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", b"{"),
        ("result.json", b"\xff\xfe"),
        ("result.json", b"[]"),
        ("result.json", b'{"settings": {}}'),
        ("model.ckpt", b"not weights"),
        ("model.ckpt", None),
        ("recalled-1.pt", b""),
        ("recalled-1.pt", None),
    ],
)
def test_a_file_that_is_damaged_or_lost_is_named(name, content, trained, capsys):
    path = trained / name
    whole = path.read_bytes()
    try:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        status, line = fails(words(trained), capsys)
        assert status == 1 and str(path) in line
    finally:
        path.write_bytes(whole)


def test_a_place_that_is_no_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    status, line = fails(words(tmp_path / "file" / "out"), capsys)
    assert status == 1 and str(tmp_path / "file" / "out") in line


def test_a_result_of_other_settings_is_named(trained, capsys):
    status, line = fails([*words(trained), "--seed", "3"], capsys)
    assert status == 1 and "seed=0 (now 3)" in line and "--fresh" in line


def test_a_recording_without_sound_is_named(tmp_path, capsys):
    pytest.importorskip("soundfile", reason="needs snnkernels[data]: soundfile")
    (tmp_path / "7_someone_1.wav").write_bytes(b"RIFF")
    status, line = fails(["spoken-digits", str(tmp_path), "--out", str(tmp_path / "out")], capsys)
    assert status == 1 and "7_someone_1.wav" in line
    assert not (tmp_path / "out").exists()
