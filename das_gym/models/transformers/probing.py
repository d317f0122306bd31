"""Find out how the layers of a model can be run one by one, by trying it on two images of noise; or reject the model.

`probe_capabilities` decides about the decoder, `add_tower` about a vision tower. Nothing is looked up by the type of a
model, except for those that are known to give wrong numbers (`REJECTED`).
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.commands.progress import quiet_loading
from das_gym.models.inputs import to_widest
from das_gym.models.macs import MacCounter, share_copy
from das_gym.models.transformers.comparison import ANSWERS, ROUNDING_TOLERANCES, TOLERANCES, Comparison
from das_gym.models.transformers.inputs import Encoding, PromptProcessor
from das_gym.models.transformers.layer_removal import delete_layers, delete_vision_layers, reload_difference
from das_gym.models.transformers.model import VLM, LanguageHead, prepare_experts
from das_gym.models.transformers.stack import find_decoder, find_vision_tower, note_layer_parts, record, run_layer
from das_gym.models.transformers.tower import TowerCapabilities, VisionTower, image_features
from das_gym.models.transformers.units import UNITS, ModelCapabilities
from das_gym.processes import is_main_process

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of the bound of logits in configurations."""

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

UNREAD = "its output is never read"
TIED_VISION = "without it the model reads other layers, or would not reload unchanged"
"""Why a vision layer is protected."""


@torch.no_grad()
def probe_capabilities(model: Any, processor: PromptProcessor, only_runs: bool = False) -> ModelCapabilities:
    """Find out how layers can be run one by one, and removed unless `only_runs`; ValueError with the reason if not."""
    _reject_unsupported(model)
    compare = Comparison(model, processor)
    plain = VLM(model)
    one = compare.encodings(compare.prompts(1))
    with compare.reject_on_error("its own forward fails on the output of its processor"):
        note_layer_parts(plain.stack, lambda: plain.run(one))
    with compare.with_few_layers():
        with compare.in_float32():
            capabilities = _probe_decoder(compare, plain, one, only_runs)
            if not only_runs:
                _check_removal(compare, capabilities)
        check_mac_counting(compare, capabilities)
    if compare.is_large and not only_runs:
        _check_one_removal(compare, capabilities, prompts=1)  # of all layers, in the model's own dtype
    return capabilities


def _reject_unsupported(model: Any) -> None:
    config = model.config.get_text_config(decoder=True)
    reason = REJECTED.get(model.config.model_type)
    if getattr(config, "num_kv_shared_layers", None):
        reason = f"{SHARED_KEYS} (`num_kv_shared_layers`)"
    sources = getattr(config, "kv_source_layers", None)
    if sources is not None and list(sources) != list(range(len(sources))):
        reason = f"{SHARED_KEYS} (`kv_source_layers`)"
    if reason:
        raise ValueError(f"{type(model).__name__} ({model.config.model_type}) is not supported: {reason}")


def _probe_decoder(compare: Comparison, plain: VLM, one: Sequence[Encoding], only_runs: bool) -> ModelCapabilities:
    """Find the capabilities of the decoder step by step: each step needs the results of earlier ones."""
    with compare.reject_on_error("its layers cannot be recorded"):
        added = record(plain.stack, lambda: plain.run(one)).added
    answer_type = _answer_type(compare)
    compare.processor = compare.processor.with_answer_type(answer_type)
    plain_way = ModelCapabilities(
        additive_layers=tuple(sorted(added)),
        answer_type=answer_type,
        protected=dict.fromkeys(range(max(added, default=0)), "the model adds image features after it"),
        caches_images=False,
        shares_prefix=False,
        supports_kv_only_last_layer=False,
    )
    plain_way = _with_head(compare, plain_way)
    fixed = {} if only_runs else _fixed_ends(compare.model)
    found = replace(plain_way, protected={**fixed, **plain_way.protected})
    plain_logits = compare.layerwise_logits(compare.with_capabilities(plain_way))
    for name in ("caches_images", "shares_prefix", "supports_kv_only_last_layer"):
        allowed = TOLERANCES if name == "caches_images" else ROUNDING_TOLERANCES
        richer: ModelCapabilities = replace(found, **{name: True})  # type: ignore[arg-type]
        try:
            if compare.same(compare.layerwise_logits(compare.with_capabilities(richer)), plain_logits, allowed):
                found = richer
        except Exception:  # whatever transformers raises: the model cannot do this
            continue
    return found


def _answer_type(compare: Comparison) -> int | None:
    """Return the token type with which attention over answer tokens is causal; None = the type of the question."""
    (prompt,) = compare.prompts(1)
    if not compare.encodings([prompt])[0].types:
        return None
    # If attention over the answer is causal, a longer answer does not change the logits of its first token.
    longer = replace(prompt, answer=f"{prompt.answer} {ANSWERS[1]}")
    for candidate in (None, 1, 0):
        processor = compare.processor.with_answer_type(candidate)
        encodings = [processor.encode(p, pixels=True) for p in (prompt, longer)]
        first, other = (compare.own_logits(compare.model, [encoding], 1) for encoding in encodings)
        if compare.same(first, other, ROUNDING_TOLERANCES):
            return candidate
    raise compare.unsupported("the first token of an answer attends to later ones.")


def _with_head(compare: Comparison, capabilities: ModelCapabilities) -> ModelCapabilities:
    projection = compare.model.get_output_embeddings()
    if projection is None:
        raise compare.unsupported("it has no output embeddings.")
    own = compare.own_logits(compare.model, compare.encodings(compare.prompts(3))).to(projection.weight.dtype)
    for caches_images in (False, True) if compare.processor.takes_images else (False,):
        vlm = compare.with_capabilities(replace(capabilities, caches_images=caches_images))
        try:
            features = compare.layerwise_features(vlm)
        except ValueError:
            if not caches_images:
                raise
            break  # it cannot cache images either
        plain = LanguageHead(projection)(features)
        for softcap in dict.fromkeys((None, *(getattr(vlm.text_config, name, None) for name in SOFTCAPS))):
            scale = _logit_scale(to_widest(plain), to_widest(own), softcap, vlm.text_config)
            if compare.same(LanguageHead(projection, softcap, scale)(features), own):
                return replace(vlm.capabilities, logit_scale=scale, logit_softcap=softcap)
    raise compare.unsupported(
        "run one by one, its layers do not reproduce its own forward, so it computes something between or after its layers "
        "that cannot be replayed."
    )


def _logit_scale(plain: Tensor, own: Tensor, softcap: float | None, config: Any) -> float:
    if plain.shape != own.shape:
        return 1.0
    if softcap is not None:
        clear = own.abs() < 0.9 * softcap  # beyond that, rounding errors near the cap dominate
        plain = plain[clear]
        own = softcap * torch.atanh(own[clear] / softcap)
    scale = float((plain * own).sum() / (plain * plain).sum())
    if not np.isfinite(scale):
        return 1.0
    # A measured factor has rounding errors: a number of the configuration within 1 % is taken instead.
    numbers = [float(value) for value in vars(config).values() if isinstance(value, int | float) and value > 0]
    nearest = min([1.0, *numbers, *(1 / number for number in numbers)], key=lambda number: abs(number - scale))
    return nearest if abs(nearest - scale) <= 0.01 * abs(scale) else scale


def _fixed_ends(model: Any) -> dict[int, str]:
    """Return the first and the last layer, if their type is fixed by the configuration class (Gemma 4)."""
    last = len(find_decoder(model).layers) - 1
    why = "without it the model would not reload unchanged"
    return {at: why for at in (0, last) if reload_difference(delete_layers(share_copy(model), [at])) is not None}


def separating_sets(places: Sequence[int]) -> list[list[int]]:
    """Return sets of positions such that for any two positions, some set contains one and not the other."""
    bits = range((len(places) - 1).bit_length())
    return [[p for n, p in enumerate(places) if n >> bit & 1 == side] for bit in bits for side in (0, 1)]


def _check_removal(compare: Comparison, capabilities: ModelCapabilities) -> None:
    """Compare removed layers with skipped ones: first one, then several, so that of any two one goes and the other stays.

    So a layer that reads anything of another one is found.
    """
    _check_one_removal(compare, capabilities)
    vlm = compare.with_capabilities(capabilities)
    encodings = compare.encodings(compare.prompts(1))
    state = compare.initial_state(vlm, 1)
    compare.layerwise_features(vlm, (), state)  # leaves behind what the next mask must not read, as each mask does
    for several in separating_sets(_running(compare, vlm)):
        with compare.reject_on_error(f"without its layers {several} its own forward fails"):
            without = compare.own_logits(delete_layers(share_copy(compare.model), several), encodings)
        if not compare.same(compare.layerwise_logits(vlm, several, state), without):
            raise compare.unsupported(f"without layers {several} it differs from skipping them: {TIED}")


def _running(compare: Comparison, vlm: VLM) -> list[int]:
    return [place for place in vlm.places if vlm.stack.layers[place] not in compare.idle]


@torch.no_grad()
def _check_one_removal(compare: Comparison, capabilities: ModelCapabilities, prompts: int = 3) -> None:
    vlm = compare.with_capabilities(capabilities)
    if len(vlm.places) < 2:
        raise compare.unsupported(f"it has only {len(vlm.places)} decoder layers that could be skipped.")
    places = _running(compare, vlm)
    removed = [places[len(places) // 2]]
    encodings = compare.encodings(compare.prompts(prompts))
    skipped = compare.layerwise_logits(vlm, removed, compare.initial_state(vlm, prompts))
    smaller = delete_layers(share_copy(compare.model), removed)
    difference = reload_difference(smaller)
    if difference is not None:
        raise compare.unsupported(f"without layer {removed[0]} it would not load again as it was: {difference}")
    if not compare.same(skipped, compare.own_logits(smaller, encodings)):
        raise compare.unsupported(f"without layer {removed[0]} it differs from skipping that: {TIED}")
    if not compare.is_large and is_main_process():  # of several processes, the others save nothing
        with tempfile.TemporaryDirectory() as folder, quiet_loading():
            smaller.save_pretrained(folder)
            again = type(smaller).from_pretrained(folder, dtype=compare.dtype, local_files_only=True)
        # Widened after it is loaded, as the model was: Gemma rounds the factor of its embeddings to the dtype of loading.
        again = again.to(device=smaller.device, dtype=next(smaller.parameters()).dtype)
        again = prepare_experts(again.eval())
        if not compare.same(skipped, compare.own_logits(again, encodings)):
            raise compare.unsupported(f"saved without layer {removed[0]}, it loads as another model.")


@torch.no_grad()
def check_mac_counting(compare: Comparison, capabilities: ModelCapabilities) -> None:
    """Reject models whose MACs depend on the values of tensors, such as experts that run one by one."""
    vlm = compare.with_capabilities(capabilities)
    with compare.reject_on_error("the MACs of its layers cannot be counted without computing them"):
        counter = MacCounter(vlm)
        state, _ = counter.embed(vlm.cost_example(compare.processor, compare.prompts(1), counter)[0])
        for number, indices in enumerate(vlm.stages):
            state, _ = vlm.enter_stage(state, number)
            for index in indices:
                hidden, _ = counter.run_layer(index, state, False, False)
                state = state.with_hidden({vlm.layers[index].stream: hidden})


@torch.no_grad()
def check_sublayers(vlm: VLM, processor: PromptProcessor) -> None:
    """Reject a model whose layers are more than their attention followed by their MLP, or compute both side by side."""
    compare = Comparison(vlm.model, processor)
    with compare.with_few_layers(), compare.in_float32():
        whole, halves = (compare.layerwise_logits(VLM(vlm.model, units, vlm.capabilities)) for units in UNITS)
    if not compare.same(halves, whole, ROUNDING_TOLERANCES):
        raise ValueError(
            f"{compare.name} computes attention and MLP in parallel, or more than these: they cannot be skipped "
            "separately. Leave out `units`."
        )


# ---- the vision tower


@torch.no_grad()
def add_tower(capabilities: ModelCapabilities, model: Any, processor: PromptProcessor) -> ModelCapabilities:
    """Return the capabilities with those of the vision tower; raise ValueError if its layers cannot be skipped."""
    compare = Comparison(model, processor.with_answer_type(capabilities.answer_type))
    if not processor.takes_images:
        raise ValueError(f"{compare.name} reads only text: it has no vision layers. Leave out `vision`.")
    if not capabilities.caches_images:
        raise ValueError(f"{compare.name} computes more from images than features that can be cached. Leave out `vision`.")
    with compare.with_few_layers(vision=True), compare.in_float32():
        with compare.reject_on_error("its vision layers cannot be skipped. Leave out `vision`"):
            tower = _probe_tower(compare)
        richer = replace(capabilities, tower=tower)
        layers = find_vision_tower(model).layers
        idle = [place for place, layer in enumerate(layers) if layer in compare.idle and place not in tower.protected]
        layerwise = compare.layerwise_logits(compare.with_capabilities(richer))
        if not compare.same(layerwise, compare.layerwise_logits(compare.with_capabilities(capabilities))):
            raise ValueError(
                f"{compare.name} computes something between its vision layers that cannot be replayed. Leave out `vision`."
            )
    # Layers that did not run were tested by no comparison so far: remove half of them, with all layers running.
    if idle and not _can_remove(compare, tower, compare.pixels(), idle[::2]):
        raise ValueError(f"{compare.name} without vision layers {idle[::2]} differs from skipping them. Leave out `vision`.")
    check_mac_counting(compare, richer)
    return richer


@torch.no_grad()
def find_tower_reads(capabilities: ModelCapabilities, model: Any, processor: PromptProcessor) -> tuple[int, ...]:
    """Return the positions of the vision layers that a model reads; ValueError if that cannot be found out."""
    compare = Comparison(model, processor.with_answer_type(capabilities.answer_type))
    with compare.reject_on_error("its vision layers cannot be watched, so its projector cannot train"):
        return _tower_reads(compare, compare.pixels())


def _probe_tower(compare: Comparison) -> TowerCapabilities:
    given = compare.pixels()
    reads = _tower_reads(compare, given)
    count = len(find_vision_tower(compare.model).layers)
    last = max(reads)
    found = TowerCapabilities(reads, dict.fromkeys(range(last + 1, count), UNREAD))
    if not compare.same(_replay(compare, found, given, ()), image_features(compare.model, given)):
        raise ValueError("run one by one, they do not reproduce its own forward")
    removable = [place for place in range(last + 1) if _can_remove(compare, found, given, (place,))]
    if not removable:
        raise ValueError(f"none of them can be removed: {TIED_VISION}")
    for removed in separating_sets(removable):
        if len(removed) < count and not _can_remove(compare, found, given, removed):
            raise ValueError(f"without several of them, such as {removed}, the model reads other layers, or changes")
    tied = [place for place in range(last + 1) if place not in removable]
    return TowerCapabilities(reads, {**found.protected, **dict.fromkeys(tied, TIED_VISION)})


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
    tower = VisionTower(compare.model, able)
    hidden, images, slices, groups = tower.record_images({"": given}, [[""]])
    for place in range(max(able.reads) + 1):
        run = None if place in removed else partial(run_layer, tower.stack.layers[place])
        hidden = tower.step(hidden, images, place, run)
    return tower.features(hidden, images, slices, {"": given}, groups)[""]


def _can_remove(compare: Comparison, able: TowerCapabilities, given: Mapping[str, Tensor], removed: Sequence[int]) -> bool:
    smaller = share_copy(compare.model)
    try:
        delete_vision_layers(smaller, removed)
        if reload_difference(smaller) is not None:
            return False
        return compare.same(image_features(smaller, given), _replay(compare, able, given, removed))
    except Exception:  # whatever transformers raises: it cannot do without them
        return False
