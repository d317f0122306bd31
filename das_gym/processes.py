"""Several processes that do one training together, as `accelerate launch` and `torchrun` start them.

Each asks here which one it is. The first one keeps the run, prints, and writes; alone, a process is the first one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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


def join() -> None:
    """Meet the other processes, and take the device that is this one's; alone, nothing happens."""
    if world() > 1:
        import torch
        from accelerate import PartialState

        told = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        PartialState(cpu=told or not torch.cuda.is_available())
        if not torch.distributed.is_initialized():
            raise ValueError(f"WORLD_SIZE={world()}, but the processes did not meet: start them by `accelerate launch`")


def of_first(make: Callable[[], Value]) -> Value:
    """What `make` gives in the first process, in all of them; it is called there alone."""
    if world() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    join()
    box: list[Any] = [make() if is_first() else None]
    broadcast_object_list(box)
    value: Value = box[0]
    return value
