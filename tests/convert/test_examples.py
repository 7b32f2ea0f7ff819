"""The scripts in examples/ run, and both ways give the same losses."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("*_net.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_both_ways_have_the_same_loss(script, capsys):
    pytest.importorskip(script.stem.removesuffix("_net"))
    runpy.run_path(str(script))["main"](2)
    shown = capsys.readouterr().out
    assert "same bits" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("last loss"))
    before, after = (float(word) for word in line.split() if word[0].isdigit())
    assert after == pytest.approx(before, rel=1e-5)
