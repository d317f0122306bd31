"""What training runs on: one device or several, in how many bits, how much at a time; processes are accelerate's.

    accelerate launch --num_processes 2 -m adapt with ...

Every process takes its part of each step's examples, gradients are averaged, so that the steps are those of one process
with the same batch. The first process keeps the run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from das_gym.config import check_names, choice
from das_gym.processes import join, rank, world

Example = TypeVar("Example")

TRACKERS = ("tensorboard", "wandb")
"""Where else numbers go, by accelerate's trackers."""


@dataclass(frozen=True)
class Hardware:
    """Settings of what training runs on; none of them changes what is learnt but for rounding.

    Attributes:
        micro_batch_size: Examples per forward pass; gradients are accumulated. None takes the whole batch at once.
        mixed_precision: Mixed precision of accelerate. None takes what `accelerate launch` was given, or none.
        gradient_checkpointing: Whether to recompute activations in the backward pass: less memory, more time.
        trackers: Trackers that get the metrics too, besides the run's own record.
        encoder_cache_gib: Memory for outputs of the frozen encoders, in GiB. 0 keeps none.
        dataloader_num_workers: Processes that read images ahead, for each process that trains. 0 reads them in the training
            process.
    """

    group: ClassVar[str] = "Hardware"

    micro_batch_size: int | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool = False
    trackers: tuple[str, ...] = choice((), TRACKERS)
    encoder_cache_gib: float = 2.0
    dataloader_num_workers: int = 0

    def __post_init__(self) -> None:
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size={self.micro_batch_size} is not allowed; use 1 or more, or None")
        check_names(self.trackers, TRACKERS, "tracker")
        if not 0 <= self.encoder_cache_gib < math.inf:
            raise ValueError(f"encoder_cache_gib={self.encoder_cache_gib} is not allowed; use 0 or more")
        if self.dataloader_num_workers < 0:
            raise ValueError(f"dataloader_num_workers={self.dataloader_num_workers} is not allowed; use 0 or more")


def share(examples: Sequence[Example]) -> Sequence[Example]:
    """This process's part of a step's examples.

    Raises:
        ValueError: fewer examples than processes.
    """
    if len(examples) < world():
        raise ValueError(f"a step of {len(examples)} examples cannot be split over {world()} processes; use batch_size=")
    start, end = (len(examples) * number // world() for number in (rank(), rank() + 1))
    return examples[start:end]


ONE_DEVICE = Hardware()
"""One process, in the model's own precision, everything at once."""


class Devices:
    """The processes of a training, and how each computes.

    Args:
        hardware: Settings.
        device: Where the model lies.
        folder: Where trackers write; None tracks nothing.
        name: Of the training, for trackers.

    Raises:
        ValueError: a precision that the device does not have.
    """

    def __init__(self, hardware: Hardware, device: torch.device, folder: Path | None = None, name: str = "adapt") -> None:
        join()
        self.device = device
        precision = precision_on(device, hardware)
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._tracking = _tracking(hardware.trackers, folder, name)

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in 16 bits where that is wanted."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes; those that are missing here are missing everywhere."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if world() == 1 or not gradients:
            return
        mean = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes."""
        if world() == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, "mean")

    def each(self, tensor: Tensor) -> Tensor:
        """(processes, ...): the tensor of each process."""
        if world() == 1:
            return tensor[None]
        from accelerate.utils import gather

        return gather(tensor[None].to(self.device)).cpu()

    def track(self, numbers: Mapping[str, float], step: int) -> None:
        """Tell the trackers."""
        if self._tracking is not None:
            self._tracking.log(dict(numbers), step=step)

    def end(self) -> None:
        """Have the trackers write what they hold."""
        for tracker in () if self._tracking is None else self._tracking.trackers:
            tracker.finish()  # accelerate's own `end_training` parts the processes, too, and there may be more to train


def precision_on(device: torch.device, hardware: Hardware) -> str:
    """`no`, `bf16` or `fp16`: what the settings say, or what `accelerate launch --mixed_precision` was told.

    Raises:
        ValueError: the device does not have it.
    """
    precision = hardware.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("mixed_precision=fp16 needs a GPU; use bf16, or leave it out")
    return precision


def _tracking(trackers: Sequence[str], folder: Path | None, name: str) -> Any:
    """The trackers of accelerate, begun.

    Raises:
        ValueError: one that is not installed.
    """
    if not trackers or folder is None:
        return None
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    missing = [tracker for tracker in trackers if tracker not in map(str, get_available_trackers())]
    if missing:
        raise ValueError(f"trackers={list(trackers)}: {missing[0]} is not installed here; pip install {missing[0]}")
    accelerator = Accelerator(log_with=list(trackers), project_dir=folder)
    accelerator.init_trackers(name)
    return accelerator
