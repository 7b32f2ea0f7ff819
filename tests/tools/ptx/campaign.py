"""All parts of the long sample: each compiler for each GPU in a process of its own, resumable."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from snnkernels.core.files import write_whole
from tests.tools.native import ROOT
from tests.tools.ptx.sample import COMPILERS, Counts

DEFAULT = ROOT / "build" / "ptx" / "results"
TARGETS = (90, 80, 100)
WEIGHTS = {"nvcc": 1, "nvrtc": 1, "triton": 4}  # shares of the time: Triton compiles for seconds
RECORD, PAGE = "gpu-proof.json", "gpu-proof.md"


class Part(NamedTuple):
    """One compiler for one GPU."""

    compiler: str
    target: int

    def __str__(self) -> str:
        return f"{self.compiler}-sm_{self.target}"


PARTS = [Part(compiler, target) for target in TARGETS for compiler in COMPILERS]


def made_from() -> str:
    """A hash of all that decides what a case gives."""
    files = [p for p in sorted((ROOT / "snnkernels").rglob("*.py"))]
    files += [p for p in sorted((ROOT / "csrc").rglob("*")) if p.is_file()]
    files += sorted((ROOT / "tests" / "tools").rglob("*.py"))
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in files)).hexdigest()[:16]


class Progress:
    """How far a part has come, in a file.

    What was made from other sources counts for nothing.
    """

    def __init__(self, file: Path):
        self.file, self._made_from = file, made_from()
        self.next, self.counts = 0, Counts()
        if file.exists():
            record = json.loads(file.read_text())
            if record["made_from"] == self._made_from:
                self.next, self.counts = record["next"], Counts.from_json(record["counts"])

    def write(self, next_case: int, counts: Counts) -> None:
        """Add the counts of this process to those that were there before it."""
        record = {"made_from": self._made_from, "next": next_case}
        record["counts"] = (self.counts + counts).as_json()
        write_whole(self.file, json.dumps(record).encode())


def campaign(out: Path, seconds: float, seed: int) -> int:
    """Run all parts, each for its share of the time; 1 where something was wrong.

    Args:
        out: folder of results: for each part its counts and a log, and `RECORD` with all counts.
        seconds: until it is over; the next run goes on where this one ended.
        seed: of all cases.
    """
    end = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    for k, part in enumerate(PARTS):
        weights = [WEIGHTS[p.compiler] for p in PARTS[k:]]
        share = (end - time.monotonic()) * weights[0] / sum(weights)
        command = [sys.executable, "-m", "tests.tools.ptx", part.compiler]
        command += ["--target", str(part.target), "--seconds", str(share), "--seed", str(seed)]
        # What approximate instructions give on a GPU is only bounded: one part tries that too.
        command += ["--ulps", str(int(part.compiler == "nvrtc"))]
        command += ["--json", str(out / f"{part}.json")]
        with open(out / f"{part}.log", "a") as log:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    record = {str(part): Progress(out / f"{part}.json").counts.summary() for part in PARTS}
    write_whole(out / RECORD, f"{json.dumps(record, indent=1)}\n".encode())
    print(table(record))
    return int(any(part["wrong"] or not part["calls"] for part in record.values()))


def write_docs(record: dict[str, dict]) -> None:
    """Put a record and its table into the documentation."""
    docs = ROOT / "docs"
    write_whole(docs / RECORD, f"{json.dumps(record, indent=1)}\n".encode())
    page = docs / PAGE
    text = re.sub(r"\| kernels \|.*?\n\n", f"{table(record)}\n\n", page.read_text(), flags=re.S)
    write_whole(page, text.encode())


def table(record: dict[str, dict]) -> str:
    """The summaries of parts by name, as a table in Markdown."""
    lines = [
        "| kernels | calls (repeats) | wrong | compiled kernels | their instructions that ran "
        "| launches | accesses to global, shared memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, part in record.items():
        families = ", ".join(f"{family} {n:,}" for family, n in part["families"].items())
        lines.append(
            f"| {name.replace('-', ' ')} | {part['calls']:,} (+{part['repeats']:,}): {families} "
            f"| {part['wrong']} | {part['kernels']:,} "
            f"| {part['instructions that ran']:,} of {part['instructions']:,} "
            f"| {part['launches']:,} | {part['accesses to global memory']:,}, "
            f"{part['accesses to shared memory']:,} |"
        )
    return "\n".join(lines)
