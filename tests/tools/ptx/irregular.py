"""PTX instructions that are no row of `operations.SIMPLE`: moves, memory, jumps, warps."""

from __future__ import annotations

import re

from tests.tools.ptx.operations import BITS, FLOATS, INTEGERS, ROUNDINGS, flags_of, require

_SPACES = {"global": 1, "shared": 2, "shared::cta": 2, "param": 3}  # instruction.h: Space
_CACHE = {  # hints and orders that change nothing where each byte has one writer
    "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "relaxed", "gpu", "sys", "cta", "weak",
    "volatile", "L1::evict_first", "L1::evict_last", "L1::no_allocate", "L1::evict_normal",
    "L1::evict_unchanged", "L2::128B", "L2::256B", "L2::64B", "L2::evict_first", "L2::evict_last",
}  # fmt: skip
_HALVES = {"f16", "bf16"}
_PAIRS = {"f16x2", "bf16x2"}


class Irregular:
    """A method ``do_<mnemonic>(modifiers, operands)`` for each; `decoder` has the rest."""

    # --- moves and conversions -------------------------------------------------------------------

    def do_mov(self, modifiers, operands):
        (type_,) = modifiers
        to, from_ = operands
        if to.startswith("{"):
            self.emit("UNPACK", type_, self.vector(to, type_), self.operands([from_], type_))
        elif from_.startswith("{"):
            self.emit("PACK", type_, self.operands([to], type_), self.vector(from_, type_))
        else:
            self.emit("MOV", type_, self.operands([to], type_), self.operands([from_], type_))

    def do_cvta(self, modifiers, operands):
        require(modifiers in (["to", "global", "u64"], ["global", "u64"]), "kind of cvta")
        self.emit("CVTA", "u64", *(self.operands([o], "u64") for o in operands))

    def do_cvt(self, modifiers, operands):
        *modifiers, to, from_ = modifiers
        require(set(modifiers) <= {*ROUNDINGS, "ftz", "sat"}, f"modifiers {modifiers}")
        said = [m for m in modifiers if m in ROUNDINGS]
        rounding = ROUNDINGS.index(said[0]) if said else 0
        floats = FLOATS | _HALVES
        if to in floats | _PAIRS:
            narrows = to in _PAIRS or from_ not in floats or BITS[to] < BITS[from_]
            require(rounding in (0, *range(4, 8)), "a directed rounding")
            require(not narrows or (said and rounding == 0), "how it is rounded")
            require(rounding < 4 or to == from_, "to a whole number of another type")
        elif from_ in floats:
            require(rounding >= 4, "how it becomes an integer")
        else:
            require(not said, "integers are not rounded")
        out = self.operand(operands[0], to)
        self.emit(
            "CVT",
            to,
            [out],
            self.operands(operands[1:], from_),
            from_type=from_,
            flags=flags_of(modifiers),
            rounding=rounding,
            extra=BITS[self.type_of(operands[0])] if out[0] == 0 else 64,
        )

    # --- bits, comparisons, selections -----------------------------------------------------------

    def do_prmt(self, modifiers, operands):
        require(modifiers == ["b32"], "mode of prmt")
        self.emit(
            "PRMT", "b32", self.operands(operands[:1], "b32"), self.operands(operands[1:], "b32")
        )

    def do_shf(self, modifiers, operands):
        way, kind, type_ = modifiers
        require(way in "lr" and kind in ("wrap", "clamp") and type_ == "b32", "kind of shf")
        self.emit(
            "SHF",
            type_,
            self.operands(operands[:1], type_),
            self.operands(operands[1:], type_),
            mode=int(way == "r"),
            extra=int(kind == "clamp"),
        )

    def do_lop3(self, modifiers, operands):
        require(modifiers == ["b32"], "kind of lop3")
        out, inputs = self.operands(operands[:1], "b32"), self.operands(operands[1:4], "b32")
        self.emit("LOP3", "b32", out, inputs, mode=int(operands[4], 0))

    def do_slct(self, modifiers, operands):
        type_, by = modifiers
        require(by in ("s32", "f32"), "what slct asks")
        out, inputs = self.operands(operands[:1], type_), self.operands(operands[1:], type_)
        self.emit("SLCT", type_, out, inputs, from_type=by)

    def do_setp(self, modifiers, operands):
        comparison, *modifiers, type_ = modifiers
        joins = {"and": 1, "or": 2, "xor": 3}
        require(set(modifiers) <= {"ftz", *joins}, f"modifiers {modifiers}")
        joined = next((joins[m] for m in modifiers if m in joins), 0)
        if type_ in INTEGERS or type_[:2] in ("b1", "b3", "b6"):
            require(comparison in "eq ne lt le gt ge lo ls hi hs".split(), "comparison")
        else:
            require(type_ in {"f32", "f64", "f16"}, "type")
            require(comparison not in "lo ls hi hs".split(), "comparison")
        inputs, negated = self.operands(operands[1:3], type_), 0
        if joined:
            negated = int(operands[3].startswith("!"))
            inputs.append(self.operand(operands[3].lstrip("!"), "pred"))
        require(len(operands) == 3 + bool(joined), "number of operands")
        self.emit(
            "SETP",
            type_,
            self.operands(operands[0].split("|"), "pred"),
            inputs,
            flags=flags_of(modifiers),
            mode=self.comparisons[comparison],
            extra=joined,
            rounding=negated,
        )

    # --- memory ----------------------------------------------------------------------------------

    def _memory(self, modifiers) -> tuple[int, str, int]:
        """State space, type and elements of a load or store.

        Without a space the address is a generic one; as no generic address of shared memory or of
        a parameter can be made (`do_cvta`), it lies in global memory.
        """
        *modifiers, type_ = modifiers
        space, elements = _SPACES["global"], 1
        for modifier in modifiers:
            if modifier in _SPACES:
                space = _SPACES[modifier]
            elif re.fullmatch(r"v[248]", modifier):
                elements = int(modifier[1])
            else:
                require(modifier in _CACHE, f"modifier {modifier}")
        return space, type_, elements

    def do_ld(self, modifiers, operands):
        space, type_, elements = self._memory(modifiers)
        out = self.vector(operands[0], type_)
        require(len(out) == elements and len(operands) == 2, "number of operands")
        base, offset = self.address(operands[1])
        self.emit("LD", type_, out, [base], offset=offset, space=space)

    def do_st(self, modifiers, operands):
        space, type_, elements = self._memory(modifiers)
        require(space != _SPACES["param"], "state space")
        inputs = self.vector(operands[1], type_)
        require(len(inputs) == elements and len(operands) == 2, "number of operands")
        base, offset = self.address(operands[0])
        self.emit("ST", type_, (), [base, *inputs], offset=offset, space=space)

    def do_cp(self, modifiers, operands):
        require(modifiers[0] == "async", "kind of cp")
        if modifiers[1] == "commit_group":
            self.emit("CPCOMMIT")
            return
        if modifiers[1] == "wait_group":
            self.emit("CPWAIT", offset=int(operands[0], 0))
            return
        require(modifiers[2:] == ["shared", "global"] and len(operands) == 3, "kind of cp.async")
        sizes = {"cg": (16,), "ca": (4, 8, 16)}[modifiers[1]]
        require(int(operands[2]) in sizes, "bytes of cp.async")
        (to, to_offset), (from_, from_offset) = map(self.address, operands[:2])
        require(to_offset == from_offset == 0, "an offset in cp.async")
        self.emit("CPASYNC", "b32", (), [to, from_], offset=int(operands[2]))

    def do_ldmatrix(self, modifiers, operands):
        require(modifiers[:3] == ["sync", "aligned", "m8n8"], "shape of ldmatrix")
        require(modifiers[-1] == "b16" and modifiers[3] in ("x1", "x2", "x4"), "kind of ldmatrix")
        more = set(modifiers[4:-1])
        require(more <= {"trans", "shared", "shared::cta"}, f"modifiers {more}")
        out = self.vector(operands[0], "b32")
        require(len(out) == int(modifiers[3][1]), "number of operands")
        base, offset = self.address(operands[1])
        self.emit("LDMATRIX", "b32", out, [base], offset=offset, mode=int("trans" in more))

    # --- order -----------------------------------------------------------------------------------

    def do_bra(self, modifiers, operands):
        require(set(modifiers) <= {"uni"}, f"modifiers {modifiers}")
        self.jumps.append((self.emit("BRA"), operands[0]))

    def do_ret(self, modifiers, operands):
        require(not modifiers and not operands, "operands of ret")
        self.emit("RET")

    do_exit = do_ret

    def do_trap(self, modifiers, operands):
        require(not modifiers and not operands, "operands of trap")
        self.emit("TRAP")

    def do_bar(self, modifiers, operands):
        whole = (["sync"], ["sync", "aligned"], ["cta", "sync", "aligned"])
        require(modifiers in (["warp", "sync"], *whole) and len(operands) == 1, "kind of barrier")
        operation = "WBAR" if modifiers[0] == "warp" else "BAR"
        self.emit(operation, "b32", (), self.operands(operands, "u32"))

    do_barrier = do_bar

    def do_shfl(self, modifiers, operands):
        sync, mode, type_ = modifiers
        require(sync == "sync" and type_ == "b32", "kind of shfl")
        value, *inside = operands[0].split("|")
        out = [self.operand(value, "b32"), *self.operands(inside, "pred")]
        modes = ("up", "down", "bfly", "idx")
        self.emit("SHFL", "b32", out, self.operands(operands[1:], "b32"), mode=modes.index(mode))

    def do_vote(self, modifiers, operands):
        sync, mode, type_ = modifiers
        require(sync == "sync" and not operands[1].startswith("!"), "kind of vote")
        inputs = [self.operand(operands[1], "pred"), self.operand(operands[2], "b32")]
        modes = ("all", "any", "uni", "ballot")
        out = self.operands(operands[:1], type_)
        self.emit("VOTE", "b32", out, inputs, mode=modes.index(mode))
