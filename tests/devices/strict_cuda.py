"""torch's `cuda` without a GPU: `strict_cuda.cpp` in a CPU build of torch. A process that imports this has it from then on.

It is a plugin of pytest, too: `python -m pytest -n0 -p tests.devices.strict_cuda tests/engine` runs tests on the device. It
cannot find kernels that CUDA lacks for a dtype, other rounding, races of streams, or what needs a second device.
"""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils import cpp_extension

MEMORY = 80 << 30
PROPERTIES = SimpleNamespace(name="strict", major=9, minor=0, total_memory=MEMORY, multi_processor_count=1, gcnArchName="")

source = Path(__file__).with_suffix(".cpp")
folder = Path(
    os.environ.get("STRICT_CUDA_BUILD", Path(cpp_extension.get_default_build_root()) / f"strict_cuda_{torch.__version__}")
)
folder.mkdir(parents=True, exist_ok=True)
native = cpp_extension.load("strict_cuda_native", [str(source)], ["-O1", "-w"], build_directory=str(folder))


def _index(device: Any = None) -> int:
    index = device if isinstance(device, int) else 0 if device is None else torch.device(device).index or 0
    if index > 0:
        raise AssertionError(f"Invalid device id {index}")
    return 0


class Event(SimpleNamespace):
    """Waits are counted; nothing is timed."""

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def elapsed_time(self, other: Any) -> float:
        return 1.0

    def record(self, stream: Any = None) -> None:
        pass


class Device(contextlib.AbstractContextManager):
    """`torch.cuda.device`."""

    def __init__(self, device: Any) -> None:
        _index(device)

    def __exit__(self, *error: object) -> None:
        pass


host_waits: list[str] = []


def waits() -> int:
    """Return how often the host has waited since `reset`."""
    return sum(native.waits().values()) + len(host_waits)


def reset() -> None:
    """Set all counts to zero."""
    native.reset()
    host_waits.clear()


def _to_storage(self: Any, device: Any, non_blocking: bool = False) -> Any:
    moved = torch.empty(self.nbytes(), dtype=torch.uint8, device=device)
    return moved.copy_(torch.empty(0, dtype=torch.uint8, device=self.device).set_(self)).untyped_storage()


def _install() -> None:
    torch.Tensor.pin_memory = lambda self, device=None: self  # what is copied without blocking counts as pinned
    torch.storage._to = _to_storage
    torch.storage._StorageBase.clone = lambda self: _to_storage(self, self.device)
    same = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _index,
        "device": Device,
        "get_device_capability": lambda device=None: (9, _index(device)),
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_properties": lambda device=None: PROPERTIES,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: host_waits.append("synchronize"),
        "empty_cache": lambda: None,
        "Event": Event,
        "memory_allocated": lambda device=None: native.allocated(),
        "memory_reserved": lambda device=None: native.allocated(),
        "max_memory_allocated": lambda device=None: native.allocated(),
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (MEMORY - native.allocated(), MEMORY),
        "default_generators": (native.default_generator(),),
        "is_current_stream_capturing": lambda: False,
    }
    for module in (torch.cuda, torch.cuda.random, torch.cuda.memory, torch.utils.checkpoint):
        for name, value in same.items():
            if module is torch.cuda or hasattr(module, name):
                setattr(module, name, value)
    for name in ("getDevice", "setDevice", "exchangeDevice", "maybeExchangeDevice"):
        setattr(torch._C, f"_cuda_{name}", lambda *_: 0)
    torch._C._cuda_isCurrentStreamCapturing = lambda: False


_install()
