"""Several processes that train together, as `accelerate launch` and `torchrun` start them.

The main process keeps the run, prints and writes. A single process is the main process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
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


def join() -> None:
    """Join the process group, and select this process's device."""
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        # The others wait while the main process searches or measures, for longer than torch's 10 minutes.
        PartialState(cpu=use_cpu or not torch.cuda.is_available(), timeout=timedelta(days=1))
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
