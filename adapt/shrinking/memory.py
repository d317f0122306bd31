"""What recovery and generated answers take in memory, and how many examples at a time fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from das_gym.adapt.shrinking.settings import RecoveryConfig
from das_gym.adapt.step_loss import USABLE_MEMORY

from das_gym.models.transformers.generation import SPARE_TOKENS, pad_left, pad_token
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stack import cache_name

GENERATE_BATCH_SIZE = 8
"""Most prompts that are answered at a time."""


@dataclass(frozen=True)
class TrainingPlan:
    """How a training step is computed.

    Attributes:
        micro_batch_size: Examples at a time, over which gradients are accumulated.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        needed: Bytes that it takes next to the model.
    """

    micro_batch_size: int
    gradient_checkpointing: bool
    needed: int


def plan_training(
    config: RecoveryConfig, batch_size: int, fixed: int, activations: int, checkpointed: int, free: int
) -> TrainingPlan:
    """Return how a training step fits into memory, or raise ValueError; what the settings leave open is chosen.

    Gradient checkpointing is chosen where the step does not fit without; then a power of two of examples at a time.

    Args:
        config: `micro_batch_size` and `gradient_checkpointing`.
        batch_size: Examples of the step.
        fixed: Bytes of gradients and of the optimizer's state.
        activations: Bytes of the activations of one example.
        checkpointed: The same with gradient checkpointing.
        free: Free bytes of the model's devices.
    """
    usable = USABLE_MEMORY * free - fixed
    size = min(config.micro_batch_size or batch_size, batch_size)
    is_checkpointed = config.gradient_checkpointing
    if is_checkpointed is None:
        is_checkpointed = size * activations > usable
    each = checkpointed if is_checkpointed else activations
    fits = max(1, int(usable // max(each, 1)))
    if config.micro_batch_size is None and fits < size:
        size = 1 << (fits.bit_length() - 1)
    needed = fixed + size * each
    if needed > free:
        advice = "a smaller `micro_batch_size`" if size > 1 else "a smaller `dtype`, a smaller `rank`, or shorter examples"
        if not is_checkpointed:
            advice += ", or gradient_checkpointing=True"
        raise ValueError(
            f"recovery does not fit into memory: {size} examples at a time take {needed / 2**30:.2f} GiB next to the model, "
            f"{free / 2**30:.2f} GiB are free. Use {advice}."
        )
    return TrainingPlan(size, is_checkpointed, needed)


def answers_at_a_time(
    vlm: VLM, processor: Any, prompts: Sequence[Any], free: int, most: int, new_tokens: int = SPARE_TOKENS
) -> int:
    """Return how many prompts are answered at a time: as many as fit into `free` bytes, from 1 to `most`.

    The longest, with `new_tokens` more than it has with its answer, takes keys and values of all layers, and activations of
    one layer. Of these, the two within the MLP are the largest, each about four times as wide as the hidden state.
    """
    lengths = [len(processor.encode(prompt).ids) for prompt in prompts]
    longest = prompts[lengths.index(max(lengths))]
    of_token = cached_values(vlm, processor, longest) + 2 * 4 * vlm.feature_size
    of_prompt = (max(lengths) + new_tokens) * of_token * vlm.model.dtype.itemsize
    return max(1, min(most, int(USABLE_MEMORY * free // of_prompt)))


@torch.no_grad()
def cached_values(vlm: VLM, processor: Any, prompt: Any) -> int:
    """Return how many numbers the cache keeps per token: keys and values of every layer that has them."""
    from transformers import DynamicCache

    cache = DynamicCache(config=vlm.text_config)
    batch = pad_left([processor.encode(prompt, pixels=True)], pad_token(vlm, processor), vlm)
    vlm.model.base_model(**batch, **{cache_name(type(vlm.model.base_model).forward): cache}, use_cache=True)
    tensors = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.numel() // tensor.shape[-2] for tensor in tensors if tensor is not None and tensor.numel())
