"""Reads the pictures of coming steps in other processes, by torch's DataLoader, while this one trains."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from das_gym.models.inputs import Requests

Plan = Callable[[int], Sequence[Requests]]
"""From a step to what has to be read for each of its parts, as far as is known before it comes."""

Place = tuple[int, int]
"""A step, and the number of a part of it."""


class _Packed(NamedTuple):
    """What was read for a part of a step.

    Attributes:
        place: Which part.
        pickled: What was read by key, without the numbers of its tensors.
        numbers: Those, by type and one after the other: each tensor that goes to another process takes an open file.
    """

    place: Place
    pickled: bytes
    numbers: dict[torch.dtype, Tensor]


class _Packer(pickle.Pickler):
    """Writes a tensor as its type, where its numbers begin among those of its type, and its shape."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.numbers: dict[torch.dtype, list[Tensor]] = {}

    def persistent_id(self, obj: Any) -> tuple[torch.dtype, int, tuple[int, ...]] | None:
        if not isinstance(obj, Tensor):
            return None
        others = self.numbers.setdefault(obj.dtype, [])
        others.append(obj.flatten())
        return obj.dtype, sum(map(len, others[:-1])), tuple(obj.shape)


class _Unpacker(pickle.Unpickler):
    """Reads what `_Packer` has written."""

    def __init__(self, packed: _Packed) -> None:
        super().__init__(io.BytesIO(packed.pickled))
        self.numbers = packed.numbers

    def persistent_load(self, pid: tuple[torch.dtype, int, tuple[int, ...]]) -> Tensor:
        dtype, start, shape = pid
        return self.numbers[dtype][start : start + math.prod(shape)].view(shape)


def _packed(place: Place, read: Mapping[Hashable, Any]) -> _Packed:
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(read)
    return _Packed(place, file.getvalue(), {dtype: torch.cat(found) for dtype, found in packer.numbers.items()})


class _Pictures(Dataset[Any]):
    """What a part of a step needs, read where it is asked for: in one of the other processes."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __getitem__(self, asked: tuple[Place, Requests]) -> _Packed:
        place, requests = asked
        read = {}
        for key, given in requests.items():
            with contextlib.suppress(Exception):  # it is read again by who trains, and the error told there
                read[key] = self.processor.read(*given)
        return _packed(place, read)


class _Asked(Sampler[Any]):
    """What is read for every part from a step on, until a whole epoch has needed nothing."""

    def __init__(self, plan: Plan, first: int, steps_per_epoch: int) -> None:
        self.plan, self.first, self.steps_per_epoch = plan, first, steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Place, Requests]]:
        idle = 0
        for step in count(self.first):
            parts = self.plan(step)
            yield from (((step, number), requests) for number, requests in enumerate(parts))
            idle = 0 if any(parts) else idle + 1
            if idle == self.steps_per_epoch:
                return


def _as_it_is(packed: Any) -> Any:
    return packed


LOST = "DataLoader worker"
"""What torch's error begins with that comes, wherever this process is, when one that reads has ended."""


class ReadingAhead:
    """Has other processes read what the parts of coming steps need, in the order in which they come.

    What they give is what this process would have read, to the bit; what they could not read, it reads itself, so that
    errors are the same. They start with the first part and end with `close`, or when an epoch has needed nothing more.

    Args:
        processor: Makes the model's batches; it has `read` and `ahead`, see `das_gym.models.inputs.Processor`.
        plan: What each step needs.
        steps_per_epoch: After so many steps that need nothing, nothing more is read ahead.
        workers: Processes.

    Raises:
        ValueError: the processor reads nothing ahead.
    """

    def __init__(self, processor: Any, plan: Plan, steps_per_epoch: int, workers: int) -> None:
        if workers and not hasattr(processor, "read"):
            raise ValueError(
                f"dataloader_num_workers={workers}: a {type(processor).__name__} reads no pictures ahead; use 0"
            )
        self.processor = processor
        self.plan = plan
        self.steps_per_epoch = steps_per_epoch
        self.workers = workers
        self._batches: Iterator[_Packed] | None = None
        self._expected = -1

    @contextlib.contextmanager
    def of(self, step: int, number: int) -> Iterator[None]:
        """Let the processor have what was read for a part of a step, as long as that part is computed."""
        if not self.workers:
            yield
            return
        ahead = self.processor.ahead
        ahead.update(self._next((step, number)))
        try:
            yield
        finally:
            ahead.clear()

    def during(self, work: Callable[[], None]) -> None:
        """Do the work that takes parts, and end the processes, however it ends.

        Raises:
            OSError: one of them ended before its time.
        """
        told = ""
        try:
            work()
        except RuntimeError as error:
            if not str(error).startswith(LOST):
                raise
            told = " ".join(str(error).split())
        finally:
            self.close()
        if told:  # outside of the handler, whose traceback holds on to the processes
            raise _ended(told)

    def close(self) -> None:
        """End the processes."""
        self._batches, self._expected = None, -1  # torch's iterator ends them when nobody holds it any more

    def _next(self, place: Place) -> dict[Hashable, Any]:
        step, number = place
        if number == 0 and step != self._expected:
            self.close()
            asked = _Asked(self.plan, step, self.steps_per_epoch)
            loader = DataLoader(
                _Pictures(self.processor),
                batch_size=None,
                sampler=asked,
                num_workers=self.workers,
                collate_fn=_as_it_is,
                generator=torch.Generator(),  # torch's own would draw from the training's random numbers
            )
            self._batches = iter(loader)
        self._expected = step + 1
        if self._batches is None:
            return {}
        told = ""
        try:
            packed = next(self._batches, None)
        except (RuntimeError, OSError, EOFError) as error:
            told = " ".join(str(error).split()) or type(error).__name__
        if told:  # outside of the handler, whose traceback holds on to the processes
            self.close()
            raise _ended(told)
        if packed is None:
            self._batches = None
            return {}
        if packed.place != place:
            raise ValueError(f"part {number} of step {step} was asked for, and {packed.place} comes: take parts in order")
        found: dict[Hashable, Any] = _Unpacker(packed).load()
        return found


def _ended(told: str) -> OSError:
    """The error for a process that ended before its time."""
    return OSError(
        f"a process that reads pictures ended ({told}): use fewer with dataloader_num_workers=, or 0, and a stopped run "
        "goes on with resume=<id>"
    )
