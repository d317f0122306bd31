"""The precision in which masks are scored, and whether the hardware has it: detected, never assumed."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from das_gym.models.base import VLP

PRECISIONS = ("float32", "bfloat16", "auto")
"""The values of an `Evaluator`'s `precision`.

`float32` keeps the model's own precision, so that a float64 model is scored in float64. `bfloat16` needs instructions for
it: emulation is tens of times slower than float32. `auto` is `bfloat16` on hardware with them and `float32` on other.
"""

CPU_FLAGS = ("amx_bf16", "avx512_bf16")


def bfloat16_hardware(device: torch.device | str) -> str | None:
    """Return the bfloat16 instructions of this device (`avx512_bf16`, `cuda 8.0`, ...); None without any.

    A GPU has it from compute capability 8.0 on. A CPU has it if the processor has AMX or AVX-512 instructions for it
    and torch uses oneDNN, which calls them.
    """
    device = torch.device(device)
    if device.type == "cuda" and torch.version.hip is not None:
        return "rocm" if torch.cuda.is_bf16_supported() else None
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda {major}.{minor}" if major >= 8 else None
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    flags = cpu_flags()
    return next((flag for flag in CPU_FLAGS if flag in flags), None)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return those of `CPU_FLAGS` that this processor has; before torch 2.9, those that Linux lists in `cpuinfo`."""
    if hasattr(torch.cpu, "get_capabilities"):
        found = {flag for flag, has in torch.cpu.get_capabilities().items() if has}
    else:
        found = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return frozenset(found.intersection(CPU_FLAGS))


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """Return `float32` or `bfloat16` for this device; ValueError if it lacks what is wanted."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown `precision`: got {precision!r}, expected one of {', '.join(PRECISIONS)}")
    hardware = bfloat16_hardware(device)
    if precision == "auto":
        return "float32" if hardware is None else "bfloat16"
    if precision == "bfloat16" and hardware is None:
        raise ValueError(
            f"`precision=bfloat16` needs instructions that this {torch.device(device).type} lacks: a CPU needs one of "
            f"{', '.join(CPU_FLAGS)}, a GPU compute capability 8.0. Use float32 or auto."
        )
    return precision


def with_bfloat16_layers(vlp: VLP) -> VLP:
    """Return a model whose layers multiply by bfloat16 copies of the matrices; it shares every other parameter with `vlp`.

    Its outputs equal those of `vlp` under `autocast`, but no matrix is cast again whenever its layer runs.
    """
    shared: dict[int, Any] = {id(parameter): parameter for parameter in vlp.parameters()}
    twin = copy.deepcopy(vlp, shared)
    for index in range(len(twin.layers)):
        for part in twin.skippable_layer(index).modules():
            if isinstance(part, nn.Linear):
                part.weight = nn.Parameter(part.weight.detach().bfloat16(), requires_grad=False)
    return twin


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context for matrix products in that (resolved) precision; sums and LayerNorms keep the model's own."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
