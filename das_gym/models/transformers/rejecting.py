"""Reject models whose layers cannot be skipped or removed, with the reason."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from das_gym.models.macs import MacCounter, share_copy
from das_gym.models.quiet import quiet_loading
from das_gym.models.transformers.comparison import Comparison
from das_gym.models.transformers.inputs import PromptProcessor
from das_gym.models.transformers.layer_removal import delete_layers, reload_difference
from das_gym.models.transformers.model import VLM, batch_experts
from das_gym.models.transformers.units import UNITS, ModelCapabilities
from das_gym.processes import is_main_process

QUERY_TRANSFORMER = (
    "its query transformer counts layers by `cross_attention_frequency`, which a smaller configuration changes"
)
SHARED_KEYS = "some of its layers take keys and values from earlier ones, which a layer by itself cannot"

REJECTED = {
    "blip-2": QUERY_TRANSFORMER,
    "blip_2": QUERY_TRANSFORMER,
    "instructblip": QUERY_TRANSFORMER,
    "gemma3n": SHARED_KEYS,
    "gemma3n_text": SHARED_KEYS,
}
"""Types of models that are known not to work, and why."""

TIED = "some layers read what others computed, or depend on their positions in a way that is not known"


def reject_unsupported(model: Any) -> None:
    """Reject types that are known not to work, and layers that share keys and values."""
    config, kind = model.config.get_text_config(decoder=True), model.config.model_type
    reason = REJECTED.get(kind)
    if getattr(config, "num_kv_shared_layers", None):
        reason = f"{SHARED_KEYS} (`num_kv_shared_layers`)"
    sources = getattr(config, "kv_source_layers", None)
    if sources is not None and list(sources) != list(range(len(sources))):
        reason = f"{SHARED_KEYS} (`kv_source_layers`)"
    if reason:
        raise ValueError(f"{type(model).__name__} ({kind}) is not supported: {reason}")


def prepare_experts(model: Any) -> Any:
    """Return the model; a mixture of experts of float64 weights computes batched products, as grouped ones cannot."""
    if model.dtype == torch.float64:
        batch_experts(model)
    return model


def separating_sets(places: Sequence[int]) -> list[list[int]]:
    """Return sets of positions such that for any two positions, some set contains one and not the other."""
    bits = range((len(places) - 1).bit_length())
    return [[p for n, p in enumerate(places) if n >> bit & 1 == side] for bit in bits for side in (0, 1)]


def check_removal(compare: Comparison, capabilities: ModelCapabilities) -> None:
    """Compare removed layers with skipped ones; a small model without a layer is also saved and loaded again.

    One layer is removed first. Then several are, so that of any two layers one goes and the other stays: a layer that reads
    anything of another one is found, also what an earlier mask left behind.
    """
    check_one_removal(compare, capabilities)
    vlm = compare.with_capabilities(capabilities)
    encodings, state = compare.encodings(compare.prompts(1)), compare.begin(vlm, 1)
    compare.driven_features(vlm, (), state)  # leaves behind what the next mask must not read, as each mask does
    for several in separating_sets(_running(compare, vlm)):
        with compare.rejecting(f"without its layers {several} its own forward fails"):
            without = compare.own_logits(delete_layers(share_copy(compare.model), several), encodings)
        if not compare.same(compare.driven_logits(vlm, several, state), without):
            raise compare.unsupported(f"without layers {several} it differs from skipping them: {TIED}")


def _running(compare: Comparison, vlm: VLM) -> list[int]:
    """Return the positions of layers that can be skipped and are not idle."""
    return [place for place in vlm.places if vlm.stack.layers[place] not in compare.idle]


@torch.no_grad()
def check_one_removal(compare: Comparison, capabilities: ModelCapabilities, prompts: int = 3) -> None:
    """Compare the model without one layer with skipping that; a small one is also saved and loaded again."""
    vlm = compare.with_capabilities(capabilities)
    if len(vlm.places) < 2:
        raise compare.unsupported(f"it has only {len(vlm.places)} decoder layers that could be skipped.")
    places = _running(compare, vlm)
    removed, encodings = [places[len(places) // 2]], compare.encodings(compare.prompts(prompts))
    skipped = compare.driven_logits(vlm, removed, compare.begin(vlm, prompts))
    smaller = delete_layers(share_copy(compare.model), removed)
    difference = reload_difference(smaller)
    if difference is not None:
        raise compare.unsupported(f"without layer {removed[0]} it would not load again as it was: {difference}")
    if not compare.same(skipped, compare.own_logits(smaller, encodings)):
        raise compare.unsupported(f"without layer {removed[0]} it differs from skipping that: {TIED}")
    if not compare.is_large and is_main_process():  # of several processes, the others save nothing
        with tempfile.TemporaryDirectory() as folder, quiet_loading():
            smaller.save_pretrained(folder)
            dtype = next(smaller.parameters()).dtype
            again = type(smaller).from_pretrained(folder, dtype=dtype, local_files_only=True)
        again = prepare_experts(again.to(smaller.device).eval())
        if not compare.same(skipped, compare.own_logits(again, encodings)):
            raise compare.unsupported(f"saved without layer {removed[0]}, it loads as another model.")


@torch.no_grad()
def check_mac_counting(compare: Comparison, capabilities: ModelCapabilities) -> None:
    """Reject models whose MACs depend on the values of tensors, such as experts that run one by one."""
    vlm = compare.with_capabilities(capabilities)
    with compare.rejecting("the MACs of its layers cannot be counted without computing them"):
        counter = MacCounter(vlm)
        state, _ = counter.embed(vlm.sample(compare.processor, compare.prompts(1), counter)[0])
        for number, indices in enumerate(vlm.stages):
            state, _ = vlm.enter(state, number)
            for index in indices:
                hidden, _ = counter.run_layer(index, state, False, False)
                state = state.with_hidden({vlm.layers[index].stream: hidden})


@torch.no_grad()
def check_sublayers(vlm: VLM, processor: PromptProcessor) -> None:
    """Reject a model whose layers are more than their attention followed by their MLP, or compute both side by side."""
    compare = Comparison(vlm.model, processor)
    with compare.with_few_layers(), compare.in_float32():
        whole, halves = (compare.driven_logits(VLM(vlm.model, units, vlm.capabilities)) for units in UNITS)
    if not compare.same(halves, whole):
        raise ValueError(
            f"{compare.name} computes attention and MLP in parallel, or more than these: they cannot be skipped "
            "separately. Leave out `units`."
        )
