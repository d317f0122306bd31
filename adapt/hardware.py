"""What training runs on: precision, processes, memory and trackers, by accelerate.

    accelerate launch --num_processes 2 -m adapt with ...

Every process takes its share of each step's examples and gradients are averaged, so the steps are those of one process with
the same batch size. The main process keeps the run.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
import torch
from das_gym.adapt.settings import Hardware
from torch import Tensor

from das_gym.processes import join_process_group, rank, world_size

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


def gib_bytes(gib: float | None) -> int | None:
    """Return the bytes of a setting in GiB; None stays None, the default of who keeps them."""
    return None if gib is None else int(gib * 2**30)


def check_precision(device: torch.device, hardware: Hardware) -> str:
    """Return the mixed precision of a training; accelerate silently ignores fp16 on a CPU."""
    precision = hardware.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("`mixed_precision=fp16` needs a GPU. Use bf16, or leave it out.")
    return precision


def make_accelerator(hardware: Hardware, device: torch.device, folder: Path | None = None) -> "Accelerator":
    """Return an accelerator for a model that lies on a device already. Trackers write to the folder; None turns them off."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    join_process_group()
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
