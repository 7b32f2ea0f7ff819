"""Drop-in: networks written for another library run their neurons over time in one fused pass.

`accelerate` takes a network as it is, `run_over_time` one that is stepped in a loop. Each library
has one file here, which is imported when a network has its modules.
"""

from snnkernels.convert import clock_driven
from snnkernels.convert.adapter import Adapter
from snnkernels.convert.fused import Kept
from snnkernels.convert.over_time import run_over_time
from snnkernels.convert.report import Entry, Report
from snnkernels.convert.swap import accelerate, original, restore

__all__ = [
    "Adapter",
    "Entry",
    "Kept",
    "Report",
    "accelerate",
    "clock_driven",
    "original",
    "restore",
    "run_over_time",
]
