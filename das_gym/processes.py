"""Several processes that do one training together, as `accelerate launch` and `torchrun` start them.

Each asks here which one it is. The first one keeps the run, prints, and writes; alone, a process is the first one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

Value = TypeVar("Value")


def rank() -> int:
    """The number of this process, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process keeps the run, prints, and writes."""
    return rank() == 0


def lonely() -> str | None:
    """What is wrong where `accelerate launch` was to start several processes and this one is alone; None where nothing is.

    On CPUs it starts one unless it is given `--mpirun_hostfile`.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if not launched or "WORLD_SIZE" in os.environ:
        return None
    command = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m adapt ..."
    return f"accelerate launch started one process alone; on CPUs: `{command}`"


@cache
def _tell(line: str) -> None:
    """Print a line where errors go, once in a process."""
    print(line, file=sys.stderr)


def join() -> None:
    """Meet the other processes, and take the device that is this one's; alone, `lonely` is told, once, and nothing else."""
    alone = lonely()
    if alone is not None:
        _tell(alone)
    if world() > 1:
        import torch
        from accelerate import PartialState

        told = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        PartialState(cpu=told or not torch.cuda.is_available())
        if not torch.distributed.is_initialized():
            ways = "`accelerate launch`, or on CPUs `torchrun`"
            raise ValueError(f"WORLD_SIZE={world()}, but the processes did not meet: start them by {ways}")


def of_first(make: Callable[[], Value]) -> Value:
    """What `make` gives in the first process, in all of them; it is called there alone.

    Raises:
        FloatingPointError: it does so there; in all of them, since there are those who go on without what is no number.
    """
    if world() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    join()
    box: list[Any] = [None]
    if is_first():
        try:
            box = [make()]
        except FloatingPointError as error:
            box = [error]
    broadcast_object_list(box)
    if isinstance(box[0], FloatingPointError):
        raise box[0]
    value: Value = box[0]
    return value
