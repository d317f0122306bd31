"""Read the images of coming training steps in worker processes, by torch's DataLoader."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from das_gym.models.inputs import Requests
from das_gym.processes import SIGNALS


class _Images(Dataset[dict[Any, Any]]):
    """Reads the images of a micro-batch in a worker process. Its index names what to read: the sampler sends it there."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __getitem__(self, requests: Requests) -> dict[Any, Any]:
        read = {}
        for key, arguments in requests.items():
            with contextlib.suppress(Exception):  # the training process reads it again, and raises the same error
                read[key] = self.processor.read(*arguments)
        return read


def _prepare_worker(_: int) -> None:
    # By default each tensor that goes to another process takes a file descriptor: batches of images exceed `ulimit -n`.
    torch.multiprocessing.set_sharing_strategy("file_system")
    # A scheduler signals all processes at once. A worker that a signal kills makes torch raise an error in the training
    # process, while that stops in an orderly way; one that exits with 0 does not.
    for number in SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, lambda *_: os._exit(0))


class Prefetcher:
    """Reads the images of coming micro-batches ahead; training is the same to the bit as without.

    Args:
        processor: Makes the model's batches, and takes images from its `ahead`.
        plan: Returns which images each micro-batch of a step needs.
        workers: Number of processes, which start with the first step and end with `close`; 0 reads nothing ahead.
    """

    def __init__(self, processor: Any, plan: Callable[[int], Sequence[Requests]], workers: int) -> None:
        if workers and not hasattr(processor, "requests"):
            kind = type(processor).__name__
            raise ValueError(f"`dataloader_num_workers` is not supported by {kind}: got {workers}, expected 0.")
        self.processor = processor
        self.plan = plan
        self.workers = workers
        self._batches: Iterator[dict[Any, Any]] | None = None
        self._next_step = -1

    def load(self, step: int, part: int) -> None:
        """Give the processor the images of a micro-batch; those of a step are loaded in order."""
        if not self.workers:
            return
        if part == 0:
            if self._batches is None or step != self._next_step:
                requests = (request for later in count(step) for request in self.plan(later))
                loader = DataLoader(
                    _Images(self.processor),
                    batch_size=None,
                    sampler=requests,
                    num_workers=self.workers,
                    worker_init_fn=_prepare_worker,
                    generator=torch.Generator(),  # torch's own would draw from the training's random numbers
                )
                self._batches = iter(loader)
            self._next_step = step + 1
        assert self._batches is not None
        self.processor.ahead.clear()
        self.processor.ahead.update(next(self._batches))

    def close(self) -> None:
        """Stop the processes."""
        self.processor.ahead.clear()
        self._batches = None  # torch's iterator ends them when nothing refers to it any more
