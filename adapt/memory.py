"""How much memory a training takes, told before its first step, and how many examples at a time there is room for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

if TYPE_CHECKING:
    from das_gym.adapt.step_loss import StepLoss

ADAMW_BYTES = 2 * 4
"""What AdamW keeps for a parameter, in bytes; the gradient comes to the size of the parameter."""

SHARE = 0.8
"""Share of the free memory that an estimate may fill: allocators leave gaps."""


def activation_bytes(step_loss: StepLoss) -> int:
    """Bytes that one example's forward keeps for the gradient, parameters aside; the first example stands for all."""
    known = {p.untyped_storage().data_ptr() for module in (step_loss.vlp, step_loss.head) for p in module.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    example, device = step_loss.examples[:1], step_loss.vlp.device
    drawing = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with drawing, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        targets, drawn = step_loss.targets(example), (step_loss.seed, 0) if step_loss.augment else None
        losses, logits = step_loss.losses(example, targets, None, drawn)
    del losses, logits
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Memory that is free where the model lies."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def make_room(step_loss: StepLoss, parameters: Iterable[Tensor], own_share: int) -> str:
    """Say what a training takes, and where nothing else was asked for have as many examples at a time as there is room for.

    Args:
        step_loss: Of the training; its `micro_batch_size` is set where it is None and not all examples fit.
        parameters: What trains.
        own_share: Examples of a step that are this process's.

    Returns:
        A line for people.
    """
    fixed = sum(p.numel() * (p.element_size() + ADAMW_BYTES) for p in parameters)
    each, free = activation_bytes(step_loss), free_bytes(step_loss.vlp.device)
    room = max(1, int((SHARE * free - fixed) // max(each, 1)))
    at_once = min(step_loss.micro_batch_size or own_share, own_share)
    asked = step_loss.micro_batch_size is not None
    if not asked and room < at_once:
        at_once = step_loss.micro_batch_size = 1 << (room.bit_length() - 1)  # a power of two
    needed = fixed + at_once * each
    line = (
        f"memory: {_shown(each)} an example for the gradient, {at_once} at a time, and {_shown(fixed)} for gradients and "
        f"AdamW: {_shown(needed)} beside the model; {_shown(free)} are free"
    )
    if at_once < own_share and not asked:
        line += f"; {own_share} at a time would not fit, so that a step's {own_share} examples come in parts"
    elif needed > free:
        line += "; that does not fit: give a smaller micro_batch_size, or gradient_checkpointing=True"
    return line


def _shown(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
