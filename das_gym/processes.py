"""Several processes that train together, as `accelerate launch` and `torchrun` start them.

The main process keeps the run, prints and writes. A single process is the main process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

Value = TypeVar("Value")


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process keeps the run, prints and writes."""
    return rank() == 0


@cache
def warn_if_single_process() -> None:
    """Warn once if `accelerate launch` started a single process, as it does on CPUs without `--mpirun_hostfile`."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and "WORLD_SIZE" not in os.environ:
        command = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m adapt ..."
        print(f"accelerate launch started a single process. On CPUs use `{command}`", file=sys.stderr)


def join() -> None:
    """Join the process group, and select this process's device."""
    warn_if_single_process()
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        PartialState(cpu=use_cpu or not torch.cuda.is_available())
        if not torch.distributed.is_initialized():
            raise ValueError(
                f"WORLD_SIZE={world_size()}, but the processes did not join: use `accelerate launch`, on CPUs `torchrun`"
            )


def run_on_main_process(make: Callable[[], Value]) -> Value:
    """Call `make` on the main process, and return its value on all processes."""
    if world_size() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    join()
    box: list[Any] = [None]
    if is_main_process():
        try:
            box = [make()]
        except FloatingPointError as error:
            box = [error]
    broadcast_object_list(box)
    if isinstance(box[0], FloatingPointError):
        raise box[0]
    value: Value = box[0]
    return value
