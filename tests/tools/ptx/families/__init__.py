"""Families of kernels: random calls of each, and what they must give.

A family is one class with the methods of `base.Family`; `FAMILIES` names them all.
"""

from __future__ import annotations

from tests.tools.ptx.families.base import Family
from tests.tools.ptx.families.bntt import Bntt
from tests.tools.ptx.families.iir import Iir
from tests.tools.ptx.families.neuron import General, Plain, Regulariser

FAMILIES: dict[str, Family] = {
    family.name: family for family in (Plain(), General(), Regulariser(), Iir(), Bntt())
}
