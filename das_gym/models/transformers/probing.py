"""Find out how the layers of a model can be run one by one, by trying it on two images of noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.models.macs import share_copy
from das_gym.models.transformers.comparison import ANSWERS, Comparison
from das_gym.models.transformers.inputs import PromptProcessor
from das_gym.models.transformers.layer_removal import delete_layers, reload_difference
from das_gym.models.transformers.model import VLM, LanguageHead
from das_gym.models.transformers.recording import record
from das_gym.models.transformers.rejecting import check_mac_counting, check_removal, reject_unsupported
from das_gym.models.transformers.stack import find_decoder, note_layer_parts
from das_gym.models.transformers.units import ModelCapabilities

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of the bound of logits in configurations."""

RELOADED_BYTES = 2**28
"""Models of up to this size are saved without a layer and loaded again, and compared in float32."""


@torch.no_grad()
def probe_capabilities(model: Any, processor: PromptProcessor) -> ModelCapabilities:
    """Find out how the layers of a model can be run one by one.

    Args:
        model: The model of transformers, in eval mode.
        processor: Its own, as das_gym uses it.

    Raises:
        ValueError: The layers of the model cannot be skipped, with the reason.
    """
    reject_unsupported(model)
    compare = Comparison(model, processor)
    is_small = sum(p.numel() * p.element_size() for p in model.parameters()) <= RELOADED_BYTES
    with compare.in_float32():
        capabilities = _probe_decoder(compare)
        if is_small:
            check_removal(compare, capabilities, reload=True)
    if not is_small:
        check_removal(compare, capabilities, reload=False)
    check_mac_counting(compare, capabilities)
    return capabilities


def _probe_decoder(compare: Comparison) -> ModelCapabilities:
    """Find the capabilities of the decoder step by step: each step needs the results of earlier ones."""
    model, plain = compare.model, VLM(compare.model)
    one = compare.encodings(compare.prompts(1))
    with compare.rejecting("its own forward fails on the output of its processor"):
        note_layer_parts(plain.stack, lambda: plain.run(one))
    forms = {tuple(t.shape[1:] for t in e.pixels.values()) for e in compare.encodings(compare.prompts(3))}
    if len(forms) > 1:
        raise compare.unsupported("images of the same size get tensors of different shapes.")
    with compare.rejecting("its layers cannot be recorded"):
        added = record(plain.stack, lambda: plain.run(one)).added
    answer_type = _answer_type(compare)
    compare.processor = compare.processor.with_answer_type(answer_type)
    why = "the model adds image features after it"
    plain_way = ModelCapabilities(
        additive_layers=tuple(sorted(added)),
        answer_type=answer_type,
        protected=dict.fromkeys(range(max(added, default=0)), why),
        caches_images=False,
        shares_prefix=False,
        supports_kv_only_last_layer=False,
    )
    plain_way = _with_head(compare, plain_way)
    found = replace(plain_way, protected={**_fixed_ends(model), **plain_way.protected})
    for name in ("caches_images", "shares_prefix", "supports_kv_only_last_layer"):
        richer: ModelCapabilities = replace(found, **{name: True})  # type: ignore[arg-type]
        plainer = replace(
            richer, caches_images=plain_way.caches_images, shares_prefix=False, supports_kv_only_last_layer=False
        )
        try:
            if compare.same(*(compare.driven_logits(compare.with_capabilities(way)) for way in (richer, plainer))):
                found = richer
        except Exception:  # whatever transformers raises: the model cannot do this
            continue
    return found


def _answer_type(compare: Comparison) -> int | None:
    """Return the token type with which attention over answer tokens is causal; None = the type of the question."""
    (prompt,) = compare.prompts(1)
    if not compare.encodings([prompt])[0].types:
        return None
    longer = replace(prompt, answer=f"{prompt.answer} {ANSWERS[1]}")
    for candidate in (None, 1, 0):
        processor = compare.processor.with_answer_type(candidate)
        encodings = [processor.encode(p, pixels=True) for p in (prompt, longer)]
        if compare.same(*(compare.own_logits(compare.model, [encoding], 1) for encoding in encodings)):
            return candidate
    raise compare.unsupported("the first token of an answer attends to later ones.")


def _with_head(compare: Comparison, capabilities: ModelCapabilities) -> ModelCapabilities:
    """Find out how the model computes logits, and whether layers that run one by one give those.

    Images of several prompts go in together, or, where they are numbered within their batch (Molmo 2), as features
    of each.
    """
    projection = compare.model.get_output_embeddings()
    if projection is None:
        raise compare.unsupported("it has no output embeddings.")
    own = compare.own_logits(compare.model, compare.encodings(compare.prompts(3)))
    own = own if compare.is_float32 else own.to(projection.weight.dtype)
    for caches_images in (False, True) if compare.processor.sees else (False,):
        vlm = compare.with_capabilities(replace(capabilities, caches_images=caches_images))
        try:
            features = compare.driven_features(vlm)
        except ValueError:
            if not caches_images:
                raise
            break
        plain = LanguageHead(projection)(features)
        for softcap in dict.fromkeys((None, *(getattr(vlm.text_config, name, None) for name in SOFTCAPS))):
            scale = _logit_scale(plain.double(), own.double(), softcap, vlm.text_config)
            if compare.same(LanguageHead(projection, softcap, scale)(features), own):
                return replace(vlm.capabilities, logit_scale=scale, softcap=softcap)
    raise compare.unsupported(
        "run one by one, its layers do not reproduce its own forward, so it computes something between or after its layers "
        "that cannot be replayed."
    )


def _logit_scale(plain: Tensor, own: Tensor, softcap: float | None, config: Any) -> float:
    """Measure the factor between products with the output embeddings and logits; take it from the configuration if near."""
    if plain.shape != own.shape:
        return 1.0
    if softcap is not None:
        clear = own.abs() < 0.9 * softcap  # beyond that, rounding errors near the cap dominate
        plain, own = plain[clear], softcap * torch.atanh(own[clear] / softcap)
    scale = float((plain * own).sum() / (plain * plain).sum())
    if not np.isfinite(scale):
        return 1.0
    numbers = [float(value) for value in vars(config).values() if isinstance(value, int | float) and value > 0]
    nearest = min([1.0, *numbers, *(1 / number for number in numbers)], key=lambda number: abs(number - scale))
    return nearest if abs(nearest - scale) <= 0.01 * abs(scale) else scale


def _fixed_ends(model: Any) -> dict[int, str]:
    """Return the first and the last layer, if their type is fixed by the configuration class (Gemma 4)."""
    last = len(find_decoder(model).layers) - 1
    why = "without it the model would not reload unchanged"
    return {at: why for at in (0, last) if reload_difference(delete_layers(share_copy(model), [at])) is not None}
