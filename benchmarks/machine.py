"""What benchmarks share: their parser, kept arrays, the machine that they ran on, and how much memory a process took."""

import argparse
import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from das_gym.commands.runs import library_versions
from das_gym.engine.tree import bfloat16_hardware
from das_gym.files import read_arrays, replacing


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.<name>`, whose help is the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def keep_arrays(path: Path | None, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of a file, or compute and write them; without a path, compute them."""
    if path is not None and path.exists():
        return read_arrays(path)
    arrays = compute()
    if path is not None:
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    return arrays


def describe_machine() -> dict[str, Any]:
    """Return the processor, what it has for bfloat16, cores, threads, how busy it was before, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return {
        "processor": processor,
        "bfloat16": bfloat16_hardware("cpu"),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "versions": library_versions(),
    }


def memory_mib(field: str) -> float:
    """Return the MiB of this process now (`VmRSS`) or at most (`VmHWM`). Linux only.

    `resource.getrusage` would not do: its maximum is handed down from the process that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def restart_peak() -> bool:
    """Give unused memory back and reset `VmHWM`; False where the system does not allow that."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
