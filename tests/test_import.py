"""What `import snnkernels` brings into a process, and which package may import which."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "snnkernels"
FLOORS = dict(core=0, backends=1, ops=2, nn=3, models=4, convert=4, train=4, cli=5)


def test_no_import_climbs():
    climbs = []
    for file in PACKAGE.rglob("*.py"):
        at = file.relative_to(PACKAGE).parts[0]
        for to in re.findall(
            r"snnkernels\.(\w+)[\w.]* import|import snnkernels\.(\w+)", file.read_text()
        ):
            to = "".join(to)
            if at in FLOORS and to != at and FLOORS.get(to, -1) >= FLOORS[at]:
                climbs.append(f"{file.relative_to(PACKAGE)} imports snnkernels.{to}")
    assert not climbs, climbs


def _in_a_new_process(code: str):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_needs_torch_only():
    brought = _in_a_new_process(
        "import sys, json, torch; before = set(sys.modules); import snnkernels;"
        "print(json.dumps(sorted({m.partition('.')[0] for m in set(sys.modules) - before})))"
    )
    outside = set(brought) - set(sys.stdlib_module_names)
    assert outside == {"snnkernels"}, f"import snnkernels also imports {outside}"


def test_import_leaves_the_compiler_alone():
    loaded = _in_a_new_process(
        "import sys, json, snnkernels; print(json.dumps([m in sys.modules for m in"
        " ('torch._dynamo', 'torch._inductor', 'triton', 'cupy', 'lightning', 'matplotlib',"
        " 'snnkernels.convert')]))"
    )
    assert not any(loaded)


def test_one_openmp_runtime_is_loaded():
    # With two of them in a process, threads are oversubscribed or the process hangs.
    libraries = _in_a_new_process(
        "import json, torch, snnkernels; x = torch.randn(64, 5000);"
        "snnkernels.lif(x, backend='cpp'); x @ x.T;"
        "paths = {line.split()[-1] for line in open('/proc/self/maps') if '/' in line};"
        "print(json.dumps(sorted(p for p in paths if any(k in p.rpartition('/')[2]"
        " for k in ('libgomp', 'libomp', 'libiomp')))))"
    )
    assert len(libraries) == 1, f"OpenMP runtimes: {libraries}"
