"""The GPU run (``bench/gpu.py``) where something fails or hangs: what was measured stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu
from bench.gpu_run import LEFT_OUT, Job, Run, allotted

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run():
    return Run(60, rehearse=True)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
@pytest.mark.parametrize("hangs", (True, False))
def test_nothing_that_a_job_started_runs_on(hangs, tmp_path):
    """A child of the child would go on using the GPU while others are timed."""
    log = tmp_path / "log"
    code = (
        "import subprocess, time\n"
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
        f"time.sleep({600 if hangs else 0})"
    )
    start = time.monotonic()
    job = Job([sys.executable, "-c", code], 2 if hangs else 60, log)
    assert job.wait() == ("out of time" if hangs else 0)
    assert time.monotonic() - start < 30
    child = int(log.read_text().split()[0])  # what it printed is there
    for _ in range(50):
        if not _alive(child):
            return
        time.sleep(0.1)
    raise AssertionError(f"{child} still runs")


def test_lines_come_from_a_job_that_is_killed():
    job = Job([sys.executable, "-c", "print('a', flush=True); import time; time.sleep(600)"], 3)
    assert next(job.lines()) == "a"
    assert job.wait() == "out of time"


def test_time_that_is_short_is_shared():
    assert allotted(100, 20, 30, 10) == 60  # what the later ones do not need
    assert allotted(30, 20, 30, 10) == 10
    assert allotted(30, 20) == 30


def test_a_failure_costs_one_row(run):
    found = [row for k in (1, 0, 2) for row in run.attempt(f"1 / {k}", lambda k=k: 1 / k)]
    assert found == [1.0, 0.5]
    assert len(run.left_out) == 1 and "1 / 0: ZeroDivisionError" in run.left_out[0]
    run.end, run.rehearse = 0.0, False
    assert not list(run.attempt("late", lambda: 1)) and run.left_out[1] == "late: out of time"


def test_a_step_prints_its_rows():
    command = [sys.executable, "bench/gpu.py", "--rehearse", "--step"]
    done = subprocess.run(
        [*command, "sweep cuda"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    assert len(rows) == 8 and all(row["fwd_us"] > 0 for row in rows)
    assert LEFT_OUT not in done.stdout


def test_bits_come_first_and_decide():
    command = [sys.executable, "bench/gpu.py", "--rehearse", "--step", "bits"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    assert len(rows) == 9 and all(row["equal"] for row in rows)
    good = {"exit": 0}
    found = {"bits": rows, "sanitizer": {"memcheck": good}, "tests": good}
    assert next(iter(gpu.STEPS)) == "bits" and gpu.passed(found)
    assert not gpu.passed(found | {"bits": []})
    assert not gpu.passed(found | {"bits": [rows[0] | {"equal": False}]})
    assert not gpu.passed(found | {"tests": {"exit": 1}})
    assert not gpu.passed(found | {"sanitizer": {"memcheck": {"exit": "out of time"}}})
