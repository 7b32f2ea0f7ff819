"""Compares two files of pytest-benchmark, case by case.

python -m tests.benchmarks.ratios BASELINE NOW
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from bench.common import markdown


def ratios(baseline: dict, now: dict) -> list[dict]:
    """A row for each case of both: medians, their ratio, and the share that runs scatter by.

    Args:
        baseline: what pytest-benchmark wrote.
        now: the same, later.

    Raises:
        ValueError: they are of two kinds of processors, or have no case in common.
    """
    processors = [found["machine_info"]["cpu"].get("brand_raw") for found in (baseline, now)]
    if processors[0] != processors[1]:
        raise ValueError(f"the baseline is of {processors[0]!r}, this machine is {processors[1]!r}")
    before, after = ({b["name"]: b["stats"] for b in f["benchmarks"]} for f in (baseline, now))
    rows = [
        {
            "case": name,
            "baseline ms": 1e3 * before[name]["median"],
            "now ms": 1e3 * after[name]["median"],
            "baseline / now": before[name]["median"] / after[name]["median"],
            "scatter": max(s[name]["iqr"] / s[name]["median"] for s in (before, after)),
        }
        for name in after
        if name in before
    ]
    if not rows:
        raise ValueError("no case is in both files")
    return rows


def main(baseline: str, now: str) -> None:
    """Print the rows, and the median of their ratios."""
    rows = ratios(*(json.loads(Path(path).read_text()) for path in (baseline, now)))
    print(markdown(rows))
    middle = median(row["baseline / now"] for row in rows)
    print(f"\nbaseline / now: median {middle:.3f}; below 1 it has become slower")


if __name__ == "__main__":
    main(*sys.argv[1:])
