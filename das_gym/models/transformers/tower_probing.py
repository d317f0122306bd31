"""Find out which layers of a vision tower a model reads, and which can be removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from das_gym.models.macs import share_copy
from das_gym.models.transformers.comparison import Comparison
from das_gym.models.transformers.features import image_features
from das_gym.models.transformers.inputs import PromptProcessor
from das_gym.models.transformers.layer_removal import delete_vision_layers, reload_difference
from das_gym.models.transformers.probing import check_mac_counting, separating_sets
from das_gym.models.transformers.recording import run_layer
from das_gym.models.transformers.stack import find_vision_tower, note_layer_parts
from das_gym.models.transformers.tower import TowerCapabilities, VisionTower
from das_gym.models.transformers.units import ModelCapabilities

UNREAD = "its output is never read"
TIED = "without it the model reads other layers, or would not reload unchanged"


@torch.no_grad()
def with_tower(capabilities: ModelCapabilities, model: Any, processor: PromptProcessor) -> ModelCapabilities:
    """Return the capabilities with those of the vision tower, so that vision layers can be skipped, too.

    Raises:
        ValueError: They cannot, with the reason.
    """
    compare = Comparison(model, processor.with_answer_type(capabilities.answer_type))
    if not processor.sees:
        raise ValueError(f"{compare.name} reads only text: it has no vision layers. Leave out `vision`.")
    if not capabilities.caches_images:
        raise ValueError(f"{compare.name} computes more from images than features that can be cached. Leave out `vision`.")
    with compare.with_few_layers(vision=True), compare.in_float32():
        with compare.rejecting("its vision layers cannot be skipped. Leave out `vision`"):
            richer = replace(capabilities, tower=_probe_tower(compare))
        if not compare.same(*(compare.driven_logits(compare.with_capabilities(c)) for c in (richer, capabilities))):
            raise ValueError(
                f"{compare.name} computes something between its vision layers that cannot be replayed. Leave out `vision`."
            )
    check_mac_counting(compare, richer)
    return richer


@torch.no_grad()
def find_tower_reads(capabilities: ModelCapabilities, model: Any, processor: PromptProcessor) -> tuple[int, ...]:
    """Return the positions of the vision layers that a model reads; ValueError if that cannot be found out."""
    compare = Comparison(model, processor.with_answer_type(capabilities.answer_type))
    with compare.rejecting("its vision layers cannot be watched, so its projector cannot train"):
        return _tower_reads(compare, compare.pixels())


def _probe_tower(compare: Comparison) -> TowerCapabilities:
    """Find out how the layers of a vision tower can be skipped; ValueError if they cannot."""
    given = compare.pixels()
    reads, count = _tower_reads(compare, given), len(find_vision_tower(compare.model).layers)
    last = max(reads)
    found = TowerCapabilities(reads, dict.fromkeys(range(last + 1, count), UNREAD))
    if not compare.same(_replay(compare, found, given, ()), image_features(compare.model, given)):
        raise ValueError("run one by one, they do not reproduce its own forward")
    removable = [place for place in range(last + 1) if _can_remove(compare, found, given, (place,))]
    if not removable:
        raise ValueError(f"none of them can be removed: {TIED}")
    for removed in separating_sets(removable):
        if len(removed) < count and not _can_remove(compare, found, given, removed):
            raise ValueError(f"without several of them, such as {removed}, the model reads other layers, or changes")
    tied = [place for place in range(last + 1) if place not in removable]
    return TowerCapabilities(reads, {**found.protected, **dict.fromkeys(tied, TIED)})


def _tower_reads(compare: Comparison, given: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the positions of the vision layers whose outputs the model reads directly; ValueError if there are none.

    They are those whose output changes the image features while every other layer gives the same tensor.
    """
    stack = find_vision_tower(compare.model)
    note_layer_parts(stack, partial(image_features, compare.model, given))
    tower = VisionTower(compare.model, TowerCapabilities(()))
    embedded = tower.record(given).embedded
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(embedded.shape, generator=generator, dtype=torch.float64).to(embedded)
    other = embedded + noise * (embedded.std() + 1)
    outputs = dict.fromkeys(range(len(stack.layers)), embedded)
    plain = tower.features_of_outputs(given, outputs)
    found = [n for n in outputs if not compare.same(tower.features_of_outputs(given, {**outputs, n: other}), plain)]
    if not found:
        raise ValueError("the model reads none of their outputs")
    return tuple(found)


def _replay(compare: Comparison, able: TowerCapabilities, given: Mapping[str, Tensor], removed: Sequence[int]) -> dict:
    """Compute the features of an image layer by layer, without some layers."""
    tower = VisionTower(compare.model, able)
    hidden, images, slices = tower.begin({"": given})
    for place in range(max(able.reads) + 1):
        run = None if place in removed else partial(run_layer, tower.stack.layers[place])
        hidden = tower.step(hidden, images, place, run)
    return tower.features(hidden, images, slices, {"": given})[""]


def _can_remove(compare: Comparison, able: TowerCapabilities, given: Mapping[str, Tensor], removed: Sequence[int]) -> bool:
    """Compare the model without some layers with what it gives when they are skipped; and with its reloaded self."""
    smaller = share_copy(compare.model)
    try:
        delete_vision_layers(smaller, removed)
        if reload_difference(smaller) is not None:
            return False
        return compare.same(image_features(smaller, given), _replay(compare, able, given, removed))
    except Exception:  # whatever transformers raises: it cannot do without them
        return False
