"""`python -m snnkernels tune`: candidates, the choice, the file. The kernels run interpreted."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch

from snnkernels.backends import gpu
from snnkernels.backends.faster import MEASURED, faster_on_gpu
from snnkernels.backends.gpu import gpu_key
from snnkernels.cli import main, tune
from tests.tools.targets import TARGETS

pytest.importorskip("triton", reason="needs snnkernels[triton]")
from snnkernels.backends.triton import launch_table as launches  # noqa: E402
from snnkernels.backends.triton import launch_tuned as stored  # noqa: E402
from snnkernels.backends.triton.launch_table import LAUNCHES, Launch, Row  # noqa: E402
from snnkernels.cli import _timing, _tuning  # noqa: E402

OLD, FAST, WRONG = Launch(128, 4), Launch(256, 4), Launch(64, 2)
ROWS = {
    size: (Row(1 << 16, Launch(256, 4, 8), OLD), Row(0, Launch(32, 1, 32), Launch(32, 1)))
    for size in (2, 4)
}
FASTER = {size: [(1 << 16, "cuda"), (0, "triton")] for size in (2, 4)}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache folder of its own, and a GPU by name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    forget()
    gpu_key.cache_clear()
    yield tmp_path
    forget()
    gpu_key.cache_clear()


def forget() -> None:
    """What was read from the files."""
    stored.MEASURED._known = MEASURED._known = None


@pytest.mark.parametrize("kind", ("sm_90", "unknown"))
def test_candidates_are_sensible_and_few(kind):
    for rows in LAUNCHES[kind].values():
        for row in rows:
            for launch, backward in ((row.forward, False), (row.backward, True)):
                found = _tuning.candidates(launch, backward)
                assert found[0] == launch and len(found) == len(set(found)) <= 13
                assert len(found) > 1
                for c in found:
                    assert all(n > 0 and n & (n - 1) == 0 for n in c)
                    assert c.block >= 32 * c.warps
                    assert not backward or c.ahead == launches.CHECKPOINT_EVERY


def test_sizes_measure_every_row():
    starts = {
        row.neurons for by_size in LAUNCHES.values() for rows in by_size.values() for row in rows
    }
    assert set(_tuning.MEASURED_AT) == starts
    assert list(_tuning.MEASURED_AT) == sorted(starts)
    edges = [*sorted(starts), float("inf")]
    for start, end in zip(edges, edges[1:], strict=False):
        assert start <= _tuning.MEASURED_AT[start] < end


def choose(tried: list[Launch], seconds: dict[Launch, list[float]], problem=lambda launch: None):
    """`_tuning.choose` over three rounds, with a clock that tells the times one after the other.

    The last one counts from then on; a launch without times must not be run.
    """
    left = {launch: list(reversed(times)) for launch, times in seconds.items()}

    def clock(run):
        times = left[run.args[0]]
        return lambda: times.pop() if len(times) > 1 else times[0]

    return _tuning.choose(tried, problem, left.__getitem__, clock, 3)


def test_the_fastest_is_chosen():
    choice = choose([OLD, FAST], {OLD: [2.0], FAST: [1.0]})
    assert choice == (OLD, FAST, 2000.0, 1000.0, {})


def test_one_slow_run_does_not_count():
    assert choose([OLD, FAST], {OLD: [1.0, 99.0, 1.0], FAST: [2.0, 0.1, 2.0]}).new == OLD


def test_a_small_gain_is_noise():
    assert choose([OLD, FAST], {OLD: [1.0], FAST: [0.98]}).new == OLD


def test_luck_does_not_last():
    # slower when measured again
    choice = choose([OLD, FAST], {OLD: [1.0], FAST: [0.5, 0.5, 0.5, 1.1]})
    assert choice.new == OLD and choice.refused == {}


def test_what_differs_is_refused_however_fast():
    times = {OLD: [1.0], FAST: [0.5]}
    choice = choose([OLD, WRONG, FAST], times, {WRONG: "s differs"}.get)
    assert choice.new == FAST and choice.refused == {WRONG: "s differs"}
    with pytest.raises(RuntimeError, match="launch of the table.*s differs"):
        choose([OLD, FAST], times, {OLD: "s differs"}.get)


@pytest.mark.skipif(
    not any(target.interpreted for target in TARGETS), reason="Triton is not in its interpreter"
)
def test_a_case_measures_launches_and_refuses_wrong_ones(monkeypatch):
    monkeypatch.setattr(_tuning, "_REFERENCE", 50)  # the reference computes in parts
    case = _tuning.Case(64, torch.bfloat16, "cpu", steps=18)
    row = Row(0, Launch(64, 1, 8), Launch(64, 1))
    assert case.problem(row) is None
    run = _tuning.kernels.neuron_forward

    def forward(layout, call, x, outputs, *, launch):
        run(layout, call, x, outputs, launch=launch)
        if launch.block == 128:
            outputs.s[-1, 5] = 1 - outputs.s[-1, 5]
        if launch.warps == 2:
            raise _tuning.OutOfResources(9, 8, "registers")

    monkeypatch.setattr(_tuning.kernels, "neuron_forward", forward)
    order = []

    def clock(call):
        order.append(call.args[0])
        return lambda: 1.0 / call.args[0].ahead if call.func == case.forward else 1.0

    forward_choice, backward_choice = case.choices(row, clock, rounds=1)
    refused = {c for c in _tuning.candidates(row.forward, False) if c.block == 128 or c.warps == 2}
    assert refused and set(forward_choice.refused) == refused
    assert not refused & set(order)
    assert "s does not equal" in forward_choice.refused[Launch(128, 1, 8)]
    assert forward_choice.new in (Launch(64, 1, 16), Launch(32, 1, 16))
    assert backward_choice.new == row.backward and not backward_choice.refused
    text = tune.lines(256, torch.bfloat16, forward_choice, backward_choice)
    assert "2.00x" in text and "kept" in text and "out of resource" in text


@pytest.mark.skipif(
    not any(target.interpreted for target in TARGETS), reason="Triton is not in its interpreter"
)
@pytest.mark.parametrize("cuda_ms, wins", [(0.9, "cuda"), (0.99, "triton"), (2.0, "triton")])
def test_another_backend_is_compared(cuda_ms, wins):
    case, row = _tuning.Case(64, torch.float32, "cpu", steps=18), Row(0, FAST, FAST)
    kernels, calls = _tuning.kernels, []

    class Other:
        def neuron_forward(*arguments):
            calls.append("forward")
            kernels.neuron_forward(*arguments)

        def neuron_backward(*arguments):
            calls.append("backward")
            kernels.neuron_backward(*arguments)

    seconds = iter((1e-3, 1e-3 * cuda_ms) * 3)
    got = case.faster(row, "cuda", Other, lambda run: lambda: next(seconds), rounds=3)
    assert got == (wins, {"triton": 1.0, "cuda": pytest.approx(cuda_ms)}, None)
    assert calls == ["forward", "backward"] * 2  # for its results, and to warm up
    assert f'"auto" takes {wins}' in tune.comparison(got)

    class Wrong(Other):
        def neuron_backward(*arguments):
            kernels.neuron_backward(*arguments)
            arguments[-1].x[3, 3] += 1

    got = case.faster(row, "cuda", Wrong, None, rounds=3)  # nothing is timed
    assert got.name == "triton" and "dx does not equal" in tune.comparison(got)


class OnGpu(list):
    """Sizes of a float32 tensor on the first GPU, of which one step can be taken."""

    device, dtype = torch.device("cuda", 0), torch.float32

    def element_size(self) -> int:
        return 4

    def __getitem__(self, part):
        assert part == slice(None, 1)
        return torch.empty(1, *self, device="meta")


def test_auto_takes_what_was_measured_faster(monkeypatch):
    from snnkernels import backends

    here = {"triton", "cuda"}
    monkeypatch.setattr(
        backends, "why_unavailable", lambda n, *device: None if n in here else "not here"
    )
    assert backends.faster_on_gpu(OnGpu([4, 1 << 18])) is None  # nobody has measured
    MEASURED.store(gpu_key(0), FASTER)
    choose = backends.choose.__wrapped__  # what was found is kept otherwise
    assert backends.faster_on_gpu(OnGpu([4, 1 << 18])) == "cuda"
    assert backends.faster_on_gpu(OnGpu([4, 16])) == "triton"
    assert backends.faster_on_gpu(torch.zeros(1, 1)) is None  # on the CPU
    assert choose("auto", "cuda", torch.float32, first="cuda") == "cuda"
    assert choose("auto", "cuda", torch.float32, first="triton") == "triton"
    assert choose("auto", "cuda", torch.float32) == "triton"
    assert choose("triton", "cuda", torch.float32, first="cuda") == "triton"
    assert choose("auto", "cuda", torch.float64, first="cuda") == "torch"
    here.remove("cuda")
    assert choose("auto", "cuda", torch.float32, first="cuda") == "triton"


def test_an_old_gpu_beside_a_new_one(monkeypatch):
    """Each call runs on what its own GPU can do."""
    from snnkernels import backends
    from snnkernels.backends import cuda, triton

    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(cuda, "way", lambda: "ahead of time")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", ((6, 1), (9, 0)).__getitem__)
    for module in (cuda, triton):
        assert module.why_unavailable("cuda", 1) is None
        assert module.why_unavailable("cuda") is None
        assert re.search(r"8\.0.*6.*1|6.*1.*8\.0", module.why_unavailable("cuda", 0))
    backends.why_unavailable.cache_clear()
    choose = backends.choose.__wrapped__
    assert choose("auto", "cuda", torch.float32, index=0) == "torch"
    assert choose("auto", "cuda", torch.float32, index=1) == "triton"
    assert backends.available_backends("cuda:0") == ("torch",)
    with pytest.raises(RuntimeError, match="cannot run on device"):
        choose("triton", "cuda", torch.float32, index=0)
    backends.why_unavailable.cache_clear()


def test_stored_launches_are_used_on_that_gpu_and_triton_alone(monkeypatch):
    assert stored.stored_row(0, 1 << 20, torch.float32) is None
    stored.store(gpu_key(0), ROWS)
    assert stored.stored_row(0, 1 << 20, torch.float32) == ROWS[4][0]
    assert stored.stored_row(0, 100, torch.float16) == ROWS[2][1]
    assert stored.stored_row(1, 1 << 20, torch.float32) is None
    stored.store(gpu_key(1), {size: (rows[1],) for size, rows in ROWS.items()})
    kept = {"GPU 0": ROWS, "GPU 1": {s: (r[1],) for s, r in ROWS.items()}}
    assert {key.split(", ")[0]: rows for key, rows in stored.MEASURED.read().items()} == kept
    file = stored.MEASURED.path()
    assert [other.name for other in file.parent.iterdir()] == [file.name]
    monkeypatch.setattr(gpu, "version", lambda name: "99.0")
    gpu_key.cache_clear()
    assert stored.stored_row(0, 1 << 20, torch.float32) is None


def test_a_launch_asks_the_file_once(monkeypatch):
    from snnkernels.backends.triton import launch as calls

    monkeypatch.setattr(calls, "INTERPRETED", False)
    monkeypatch.setattr(calls, "gpu_class", lambda index: "sm_90")
    stored.store(gpu_key(0), ROWS)
    x = OnGpu()
    assert calls.table_row(1 << 20, x) == ROWS[4][0]
    stored.MEASURED.path().unlink()
    assert calls.table_row(1 << 20, x) == ROWS[4][0]
    forget()
    assert calls.table_row(1 << 20, x) == launches.launches_for("sm_90", 1 << 20, torch.float32)


def changed(**parts) -> str:
    stored.store(gpu_key(0), ROWS)
    return json.dumps(json.loads(stored.MEASURED.path().read_text()) | parts)


ROW = {"neurons": 0, "forward": [32, 1, 32], "backward": [32, 1, 16]}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda: changed(format=99), "format 99, this version reads 3"),
        (lambda: changed()[:-40], "damaged"),
        (lambda: "[]", "damaged"),
        (lambda: '{"format": 3}', "damaged"),
        (lambda: changed(gpus={"GPU 0": {"4": [ROW]}}), "damaged"),
        (lambda: changed(gpus={"GPU 0": {"4": [ROW, ROW], "2": [ROW]}}), "damaged"),
        (lambda: changed(gpus={"GPU 0": {"4": [ROW | {"neurons": 1}], "2": [ROW]}}), "damaged"),
        (lambda: changed(gpus={"GPU 0": {"4": [ROW | {"forward": [33, 1, 4]}], "2": [ROW]}}), "33"),
        (lambda: changed(gpus={"GPU 0": {"4": [ROW | {"forward": [32]}], "2": [ROW]}}), "damaged"),
        (
            lambda: changed(gpus={"GPU 0": {"4": [ROW | {"backward": [32, 1, 8]}], "2": [ROW]}}),
            "16 steps ahead",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_warning(content, found):
    text, path = content(), stored.MEASURED.path()
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    forget()
    with pytest.warns(UserWarning, match=found) as seen:
        assert stored.stored_row(0, 5, torch.float32) is None
    message = str(seen[0].message)
    assert str(path) in message and "launches that snnkernels brings" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stored.stored_row(0, 5, torch.float32) is None  # said once
        stored.store(gpu_key(0), ROWS)  # replaces it
        assert stored.stored_row(0, 5, torch.float32) == ROWS[4][1]


@pytest.mark.parametrize(
    "rows",
    ([], [(5, "cuda")], [(0, "cpp")], [(0, "cuda"), (0, "cuda")]),
    ids=("none", "not to 0", "no backend", "twice"),
)
def test_a_file_of_faster_backends_that_cannot_be_used_is_a_warning(rows):
    MEASURED.store(gpu_key(0), {2: rows, 4: rows})
    with pytest.warns(UserWarning, match="damaged.*snnkernels prefers"):
        assert faster_on_gpu(OnGpu([4, 16])) is None


@pytest.fixture
def tuned_gpu(monkeypatch):
    """A GPU that is twice as fast with twice the neurons in a program; no kernel runs."""

    class Case(_tuning.Case):
        def __init__(self, neurons, dtype, device):
            assert device == "cuda"

        def problem(self, row):
            return None

        def forward(self, launch):
            return None

        backward = forward

        def faster(self, row, name, other, clock, rounds):
            assert row.forward.block and name == "cuda" and other == "module of cuda"
            return _tuning.Faster("cuda", {"triton": 2e-3, "cuda": 1e-3}, None)

    def clock(run):
        return lambda: 1.0 / run.args[0].block

    monkeypatch.setattr(tune, "why_unavailable", lambda *backend: None)
    monkeypatch.setattr(tune, "load", lambda name: f"module of {name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launches, "gpu_class", lambda index: "sm_77")
    monkeypatch.setattr(_timing, "replayed_graph", lambda flush: clock)
    monkeypatch.setattr(_tuning, "Case", Case)


def test_the_command_stores_a_row_for_every_size(tuned_gpu, capsys):
    assert main(["tune", "--rounds", "3"]) == 0
    said = capsys.readouterr().out
    assert "GPU 0 (sm_77, which the table does not know)" in said
    assert said.count("2.00x") == 2 * 2 * len(_tuning.MEASURED_AT)
    for dtype in (torch.float32, torch.bfloat16):
        for neurons in _tuning.MEASURED_AT.values():
            old = launches.launches_for("unknown", neurons, dtype)
            new = stored.stored_row(0, neurons, dtype)
            assert new.forward.block == 2 * old.forward.block
            assert new.backward.block == 2 * old.backward.block
    assert MEASURED.get(gpu_key(0)) == {
        size: [(start, "cuda") for start in reversed(_tuning.MEASURED_AT)] for size in (2, 4)
    }
    assert said.count('triton 2.0 us, cuda 1.0 us; "auto" takes cuda') == 2 * len(
        _tuning.MEASURED_AT
    )


def test_without_the_cuda_kernels_triton_stays(tuned_gpu, monkeypatch, capsys):
    missing = {"cuda": "no nvcc here"}
    monkeypatch.setattr(tune, "why_unavailable", lambda name, _: missing.get(name))
    assert main(["tune", "--rounds", "1"]) == 0
    assert "Backend 'cuda' is not compared: no nvcc here." in capsys.readouterr().out
    assert stored.stored_row(0, 1 << 20, torch.float32) and MEASURED.get(gpu_key(0)) is None


def test_a_folder_that_cannot_be_written(tuned_gpu, cache, monkeypatch, capsys):
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    for run in (lambda: main(["tune"]), lambda: tune.store(gpu_key(0), ROWS, FASTER)):
        assert run() == 1
        said = capsys.readouterr()
        assert said.out == ""  # nothing was measured
        for words in (str(cache / "file"), "XDG_CACHE_HOME", "run as before"):
            assert words in said.err
    with pytest.warns(UserWarning, match="cannot be read"):
        assert stored.stored_row(0, 5, torch.float32) is None


def test_forget(cache, capsys):
    assert tune.store(gpu_key(0), ROWS, FASTER) == 0
    assert str(cache) in capsys.readouterr().out
    assert main(["tune", "--forget"]) == 0
    assert capsys.readouterr().out.count("Deleted") == 2
    assert not any(table.path().exists() for table in (stored.MEASURED, MEASURED))
    assert stored.stored_row(0, 5, torch.float32) is None
    assert main(["tune", "--forget"]) == 0
    assert "Nothing is stored" in capsys.readouterr().out


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune"]) == 2
    said = capsys.readouterr()
    assert "needs a CUDA GPU that Triton can use" in said.err
    assert said.out == "" and said.err.count("\n") == 1
    assert not stored.MEASURED.path().exists()
