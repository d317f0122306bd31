"""What training runs on: precision, processes, memory and trackers, by accelerate; and images that are read ahead.

    accelerate launch --num_processes 2 -m adapt with ...

Every process takes its share of each step's examples and gradients are averaged, so the steps are those of one process with
the same batch size. The main process keeps the run.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch
from das_gym.adapt.settings import Hardware
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from das_gym.models.inputs import Requests
from das_gym.processes import SIGNALS, join, rank, world_size

if TYPE_CHECKING:
    from accelerate import Accelerator

Example = TypeVar("Example")

ADAMW_BYTES = 2 * 4
"""Bytes that AdamW keeps per parameter, in addition to its gradient."""


def process_share(examples: Sequence[Example]) -> Sequence[Example]:
    """Return this process's share of a step's examples; shares differ by one example at most."""
    if len(examples) < world_size():
        raise ValueError(
            f"`batch_size` is too small: got {len(examples)}, expected {world_size()} or more, one per process."
        )
    start, end = (len(examples) * number // world_size() for number in (rank(), rank() + 1))
    return examples[start:end]


ONE_DEVICE = Hardware()
"""One process, full precision, the whole batch at once."""


def training_bytes(parameters: Iterable[Tensor]) -> int:
    """Return the bytes of the gradients and the optimizer's state of parameters."""
    return sum(p.numel() * (p.element_size() + ADAMW_BYTES) for p in parameters)


def checkpointed_bytes(activations: int, layers: int, state: int) -> int:
    """Return the activations of an example with gradient checkpointing; `state` is the hidden states before a layer."""
    return layers * state + activations // layers


def free_bytes(model: torch.nn.Module) -> int:
    """Return the free memory of the devices that a model lies on."""
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    if not gpus:
        return psutil.virtual_memory().available
    # torch keeps freed memory for its next tensors, which the driver counts as used.
    kept = sum(torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu) for gpu in gpus)
    return kept + sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)


def check_precision(device: torch.device, hardware: Hardware) -> str:
    """Return the mixed precision of a training; accelerate silently ignores fp16 on a CPU."""
    precision = hardware.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("`mixed_precision=fp16` needs a GPU. Use bf16, or leave it out.")
    return precision


def make_accelerator(hardware: Hardware, device: torch.device, folder: Path | None = None) -> Accelerator:
    """Return an accelerator for a model that lies on a device already. Trackers write to the folder; None turns them off."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    join()
    trackers = list(hardware.trackers) if folder is not None else []
    # accelerate 1.15 keeps the first precision and device in singletons, but one process may train several models.
    AcceleratorState._reset_state(reset_partial_state=world_size() == 1)
    accelerator = Accelerator(
        mixed_precision=check_precision(device, hardware),
        cpu=device.type == "cpu",
        device_placement=False,
        log_with=trackers or None,
        project_dir=folder,
    )
    missing = set(trackers) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ValueError(f"`trackers` names a package that is not installed. Run `pip install {' '.join(sorted(missing))}`.")
    if trackers:
        accelerator.init_trackers("adapt")
    return accelerator


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
