"""Estimate the memory of a training before its first step, and choose how many examples go through the model at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from das_gym.problem.estimate import saved_bytes
from das_gym.processes import is_main_process

if TYPE_CHECKING:
    from das_gym.adapt.step_loss import StepLoss

ADAMW_BYTES = 2 * 4
"""Bytes that AdamW keeps per parameter, in addition to its gradient."""

USABLE = 0.8
"""Fraction of the free memory that an estimate may fill: allocators leave gaps."""


def activation_bytes(step_loss: StepLoss) -> int:
    """Return how many bytes the forward pass of the first example keeps for the backward pass, without parameters."""
    example, device = step_loss.examples[:1], step_loss.vlp.device

    def forward() -> object:
        augment = (step_loss.seed, 0) if step_loss.augment else None
        return step_loss.losses(example, step_loss.targets(example), None, augment)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout must not change the training
        return saved_bytes(forward, [*step_loss.vlp.parameters(), *step_loss.head.parameters()])


def training_bytes(parameters: Iterable[Tensor]) -> int:
    """Return the bytes of the gradients and the optimizer's state of parameters."""
    return sum(p.numel() * (p.element_size() + ADAMW_BYTES) for p in parameters)


def free_bytes(model: torch.nn.Module) -> int:
    """Return the free memory of the devices that a model lies on."""
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus) if gpus else psutil.virtual_memory().available


def choose_micro_batch_size(step_loss: StepLoss, parameters: Iterable[Tensor], batch_size: int) -> None:
    """Set `step_loss.micro_batch_size` if it is None and the batch does not fit into memory; print what does not fit."""
    fixed = training_bytes(parameters)
    per_example, free = activation_bytes(step_loss), free_bytes(step_loss.vlp)
    fits = max(1, int((USABLE * free - fixed) // max(per_example, 1)))
    size = min(step_loss.micro_batch_size or batch_size, batch_size)
    if step_loss.micro_batch_size is None and fits < size:
        size = step_loss.micro_batch_size = 1 << (fits.bit_length() - 1)  # a power of two
        print_once(f"memory: {batch_size} examples at a time do not fit, so gradients are accumulated over {size} at a time")
    if fixed + size * per_example > free:
        print_once(
            f"memory: {size} examples at a time take {format_bytes(fixed + size * per_example)} next to the model, and "
            f"{format_bytes(free)} are free: use a smaller micro_batch_size, or gradient_checkpointing=True"
        )


def print_once(text: str) -> None:
    """Print on the main process only."""
    if is_main_process():
        print(text)


@contextmanager
def restored_afterwards(parameters: Sequence[Tensor], folder: Path | None = None) -> Iterator[None]:
    """Write parameters to a file in a folder (None: the system's), and read them again after the block."""
    with tempfile.TemporaryFile(dir=folder) as file:  # it has no name, so that it does not outlive a killed process
        for parameter in parameters:
            file.write(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
        file.flush()  # a full disk is an error before the block
        try:
            yield
        finally:
            file.seek(0)
            for parameter in parameters:
                content = bytearray(file.read(parameter.nbytes))
                parameter.data.copy_(torch.frombuffer(content, dtype=parameter.dtype).view(parameter.shape))


def format_bytes(count: int) -> str:
    """Return a number of bytes in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
