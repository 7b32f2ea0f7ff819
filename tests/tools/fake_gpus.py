"""Stands for what torch.cuda says of GPUs and does with them, where there is none.

What this cannot show: whether a stream of PyTorch is the driver's, what the driver does with a
launch, and everything that runs on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch


class FakeGpus:
    """GPUs that only answer questions, and remember who asked.

    Attributes:
        count: of them.
        capability: compute capability of each.
        multiprocessors: of each.
        current: number of the current one.
        streams: handle of the current stream of each.
        waits: calls that would have waited for a device.
    """

    def __init__(self, count: int = 1, capability: tuple[int, int] = (9, 0)):
        self.count, self.capability, self.multiprocessors = count, capability, 132
        self.current: int | None = 0
        self.streams = {k: 0 for k in (None, *range(count))}
        self.waits: list[str] = []

    def install(self, replace: Callable = setattr, current: int | None = 0) -> FakeGpus:
        """Put them in the place of torch.cuda's functions.

        Args:
            replace: as setattr; pytest's ``monkeypatch.setattr`` undoes it.
            current: the current GPU; None where CPU tensors, which have no number, stand for its.
        """
        self.current = current
        gpus = self

        class Device:
            """torch.cuda.device: a context in which a GPU is the current one."""

            def __init__(self, device):
                self.index = getattr(device, "index", device)

            def __enter__(self):
                self.before, gpus.current = gpus.current, self.index

            def __exit__(self, *_):
                gpus.current = self.before

        functions = {
            "device_count": lambda: self.count,
            "current_device": lambda: self.current,
            "current_stream": lambda index=None: SimpleNamespace(
                cuda_stream=self.streams[self.current if index is None else index]
            ),
            "get_device_capability": lambda index=None: self.capability,
            "get_device_name": lambda index=None: "a GPU that is not there",
            "get_device_properties": lambda index=None: SimpleNamespace(
                multi_processor_count=self.multiprocessors
            ),
            "device": Device,
        }
        for name in ("synchronize", "ipc_collect"):
            functions[name] = lambda *_, name=name: self.waits.append(name)
        for name, function in functions.items():
            replace(torch.cuda, name, function)
        return self


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on a GPU, and says so of what is made from it."""

    gpus: FakeGpus
    place: torch.device

    @property
    def device(self) -> torch.device:
        return self.place

    @property
    def is_cuda(self) -> bool:
        return True

    def copy_(self, source: torch.Tensor, *more) -> torch.Tensor:
        if not isinstance(source, OnGpu):
            self.gpus.waits.append("copy from the host")
        return _placed(super().copy_(source, *more), self)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        like = next(a for a in torch.utils._pytree.tree_leaves(arguments) if isinstance(a, OnGpu))
        keywords = {k: v for k, v in (keywords or {}).items() if k != "device"}
        result = super().__torch_function__(function, types, arguments, keywords)
        return torch.utils._pytree.tree_map(lambda part: _placed(part, like), result)


def _placed(result: object, like: OnGpu) -> object:
    if isinstance(result, torch.Tensor):
        result = result if isinstance(result, OnGpu) else result.as_subclass(OnGpu)
        result.gpus, result.place = like.gpus, like.place
    return result


def _gives_tensor(name: str) -> Callable:
    def method(self, *arguments, **keywords):
        return _placed(getattr(torch.Tensor, name)(self, *arguments, **keywords), self)

    return method


def _waits(name: str) -> Callable:
    def method(self, *arguments, **keywords):
        self.gpus.waits.append(name)
        return getattr(torch.Tensor, name)(self, *arguments, **keywords)

    return method


# Within an op of ours PyTorch asks no subclass: these are methods that Python itself looks up.
for _name in (
    "__getitem__",
    "as_strided",
    "contiguous",
    "detach",
    "expand",
    "new_empty",
    "sum",
    "view",
):
    setattr(OnGpu, _name, _gives_tensor(_name))
for _name in ("__bool__", "__float__", "__int__", "cpu", "item", "nonzero", "numpy", "tolist"):
    setattr(OnGpu, _name, _waits(_name))


class Memory:
    """Tensors on GPUs that are not there.

    Attributes:
        made: how many tensors were made without values.
    """

    def __init__(self, gpus: FakeGpus, replace: Callable):
        self.gpus, self.made = gpus, 0
        for name in ("empty", "empty_like", "empty_strided", "full", "ones", "tensor", "zeros"):
            replace(torch, name, self._factory(getattr(torch, name), name))

    def put(self, tensor: torch.Tensor, index: int = 0) -> OnGpu:
        """A CPU tensor as one on a GPU."""
        on_gpu = tensor.as_subclass(OnGpu)
        on_gpu.gpus, on_gpu.place = self.gpus, torch.device("cuda", index)
        return on_gpu

    def _factory(self, make: Callable, name: str) -> Callable:
        def factory(*arguments, device=None, **keywords):
            like = arguments[0] if arguments and isinstance(arguments[0], OnGpu) else None
            place = torch.device(device) if device is not None else getattr(like, "place", None)
            if place is None or place.type != "cuda":
                return make(*arguments, device=device, **keywords)
            self.made += 1
            if name == "tensor":
                self.gpus.waits.append("copy from the host")
            with torch._C.DisableTorchFunctionSubclass():
                return self.put(make(*arguments, **keywords), place.index)

        return factory
