"""Writes C++ for the programs in this folder: python generate.py OUTPUT.h FILE.txt ...

A file holds the canonical text of a traced neuron (snnkernels/core/program.py). For each of them
the output has one loop over a row of neurons forward, in replay and for the adjoint, made of the
functions of program.h, with every value in a register. The standard library is all it needs.
"""

from __future__ import annotations

import sys
from pathlib import Path

CONDITIONS = ("ge", "gt", "le", "lt", "eq")  # what these give is a mask


class Program:
    """A text taken apart, and the slots of its values in the order of snncore.h: ProgramCode."""

    def __init__(self, text: str) -> None:
        head, *lines = text.splitlines()
        words = head.split()
        counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        self.parts: dict[str, list[tuple[str, str, list[str]]]] = {}
        returned = []
        for line in lines:
            words = line.split()
            if words[0] == "return":
                returned.append(words[1:])
            elif len(words) == 1:
                part = self.parts.setdefault(words[0], [])
            else:
                part.append((words[0], words[2], words[3:]))
        self.states, parameters = counts["states"], counts["parameters"]
        self.outputs = len(returned[0]) - self.states
        self.results, self.gradients = returned
        self.inputs = counts["inputs"]
        constants = [f"n{k}" for k in range(counts["numbers"])]
        constants += [f"p{k}" for k in range(parameters)]
        constants += [name for name, _, _ in self.parts["once"]]
        self.constants = constants
        rows = [f"x{k}" for k in range(self.inputs)]
        rows += [f"v{k}" for k in range(self.states)]
        rows += [f"g{k}" for k in range(self.outputs)] + [f"d{k}" for k in range(self.states)]
        for kind, count in (
            ("out", self.outputs),
            ("next", self.states),
            ("dx", self.inputs),
            ("before", self.states),
            ("sum", parameters),
        ):
            rows += [f"{kind}{k}" for k in range(count)]
        self.slots = {name: k for k, name in enumerate([*constants, "zero", *rows])}

    def loop(self, name: str, instructions: list, targets: list[tuple[str, str]]) -> list[str]:
        """A function that computes values and puts them into slots."""
        needed = {value for _, value in targets}
        for target, _, arguments in reversed(instructions):
            if target in needed:
                needed.update(arguments)
        constants = [c for c in self.constants if c in needed]
        rows = [r for r in self.slots if r in needed and r not in constants and r != "zero"]
        out = ["template <bool UNIFORM>", f"void {name}_loop(const Slot* s, int n) {{"]
        shared = [c for c in constants if c[0] == "n"]
        spread = [c for c in constants if c[0] != "n"]
        out += [f"  const Vec {c} = Vec::load(s[{self.slots[c]}].p);" for c in shared]
        out += [f"  const Constant {c}_c(s[{self.slots[c]}]);" for c in spread]
        for r in dict.fromkeys([*rows, *(slot for slot, _ in targets)]):
            out.append(f"  float* const {r}_p = s[{self.slots[r]}].p;")
        for r in rows:
            if r[0] in "xg":
                out.append(f"  const float* const {r}_a = s[{self.slots[r]}].ahead;")
        for slot, _ in targets:
            if slot.startswith(("out", "dx")):
                out.append(f"  const bool {slot}_s = s[{self.slots[slot]}].stream;")
        out.append("  for (int j = 0; j < n; j += LANES) {")
        out += [f"    const Vec {c} = {c}_c.at<UNIFORM>(j);" for c in spread]
        for r in rows:
            if r[0] in "xg":
                out.append(f"    prefetch({r}_a + j);")
            out.append(f"    const Vec {r} = Vec::load({r}_p + j);")
        for target, operation, arguments in instructions:
            if target in needed:
                taken = [f"number({a})" for a in arguments]
                if operation == "where":
                    taken[0] = f"condition({arguments[0]})"
                out.append(f"    const auto {target} = op_{operation}({', '.join(taken)});")
        for slot, value in targets:
            result = "Vec(0.0f)" if value == "-" else f"number({value})"
            if slot.startswith("sum"):
                out.append(f"    (Vec::load({slot}_p + j) + {result}).store({slot}_p + j);")
            else:
                stream = f"{slot}_s" if slot.startswith(("out", "dx")) else "false"
                out.append(f"    put({slot}_p + j, {result}, {stream});")
        steps = " | ".join(f"s[{self.slots[c]}].step" for c in spread) or "0"
        return [
            *out,
            "  }",
            "}",
            f"void {name}(const Slot* s, int n) {{",
            f"  ({steps}) ? {name}_loop<false>(s, n) : {name}_loop<true>(s, n);",
            "}",
            "",
        ]

    def functions(self, name: str) -> list[str]:
        """The three loops."""
        forward, adjoint = self.parts["forward"], self.parts["adjoint"]
        nexts = [(f"next{k}", v) for k, v in enumerate(self.results[self.outputs :])]
        outs = [(f"out{k}", v) for k, v in enumerate(self.results[: self.outputs])]
        n, s = self.inputs, self.states
        back = [(f"dx{k}", v) for k, v in enumerate(self.gradients[:n])]
        back += [(f"before{k}", v) for k, v in enumerate(self.gradients[n : n + s])]
        back += [(f"sum{k}", v) for k, v in enumerate(self.gradients[n + s :]) if v != "-"]
        return [
            *self.loop(f"{name}_forward", forward, [*nexts, *outs]),
            *self.loop(f"{name}_replay", forward, nexts),
            *self.loop(f"{name}_adjoint", [*forward, *adjoint], back),
        ]


def main(output: str, *files: str) -> None:
    """Write the header."""
    out = ["// Written by csrc/programs/generate.py.", "#pragma once", ""]
    texts, names = [], []
    code: list[str] = []
    for file in sorted(files):
        text = Path(file).read_text()
        name = Path(file).stem.replace("-", "_")
        code += Program(text).functions(name)
        texts.append(f'R"({text})"')
        names.append(name)
    out += ["#if defined(SNN_PROGRAM_LOOPS)", *code]
    entries = [f"    {{{n}_forward, {n}_replay, {n}_adjoint}}," for n in names]
    out += ["constexpr Loops LOOPS[] = {", *entries, "    {nullptr, nullptr, nullptr}};", "#else"]
    out += ["const char* const PROGRAM_TEXTS[] = {", *(f"    {t}," for t in texts), "    nullptr};"]
    out += ["#endif", ""]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text("\n".join(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
