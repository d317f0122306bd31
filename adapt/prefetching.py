"""Read the images of coming training steps in worker processes, by torch's DataLoader."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from das_gym.models.inputs import Requests

Plan = Callable[[int], Sequence[Requests]]
"""Returns what has to be read for each part of a step, as far as it is known before the step comes."""


class _Images(Dataset[dict[Hashable, Any]]):
    """A data set that reads the images of a request, in a worker process."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __getitem__(self, requests: Requests) -> dict[Hashable, Any]:
        read = {}
        for key, arguments in requests.items():
            with contextlib.suppress(Exception):  # the training process reads it again, and raises the same error
                read[key] = self.processor.read(*arguments)
        return read


def _share_by_file(_: int) -> None:
    # By default each tensor that goes to another process takes a file descriptor: batches of images exceed `ulimit -n`.
    torch.multiprocessing.set_sharing_strategy("file_system")


class Prefetcher:
    """Reads the images of the coming micro-batches in worker processes, in order.

    Training is the same to the bit as without workers. They start with the first part and end with `close`.

    Args:
        processor: Makes the model's batches; see `read` and `ahead` of `das_gym.models.inputs.Processor`.
        plan: What each step needs.
        workers: Number of processes; 0 reads nothing ahead.
    """

    def __init__(self, processor: Any, plan: Plan, workers: int) -> None:
        if workers and not hasattr(processor, "read"):
            kind = type(processor).__name__
            raise ValueError(f"`dataloader_num_workers` is not supported by {kind}: got {workers}, expected 0.")
        self.processor = processor
        self.plan = plan
        self.workers = workers
        self._batches: Iterator[dict[Hashable, Any]] | None = None
        self._next_step = -1

    @contextlib.contextmanager
    def batch(self, step: int, part: int) -> Iterator[None]:
        """Give the processor the images read for a micro-batch, within the block."""
        if not self.workers:
            yield
            return
        if part == 0:
            if self._batches is None or step != self._next_step:
                self._batches = self._start(step)
            self._next_step = step + 1
        assert self._batches is not None
        self.processor.ahead.update(next(self._batches))
        try:
            yield
        finally:
            self.processor.ahead.clear()

    def _start(self, first_step: int) -> Iterator[dict[Hashable, Any]]:
        requests = (request for step in count(first_step) for request in self.plan(step))
        return iter(
            DataLoader(
                _Images(self.processor),
                batch_size=None,
                sampler=requests,
                num_workers=self.workers,
                worker_init_fn=_share_by_file,
                generator=torch.Generator(),  # torch's own would draw from the training's random numbers
            )
        )

    def close(self) -> None:
        """Stop the worker processes."""
        self._batches = None  # torch's iterator ends them when nothing refers to it any more
