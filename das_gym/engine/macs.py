"""MACs of what the engine runs, at the shapes at which it runs.

`das_gym.problem.costs` counts a whole subnet for one example with every token a query. Here a layer is counted by parts, as
the engine shares them, and with the pooled token as the only query where no other is computed. Of a model other than
METER and ViLT the engine knows what `count_costs` knows: whole layers, an upper bound of what ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from torch import Tensor, nn

from das_gym.models.base import VLP
from das_gym.models.meter.model import METER, METERConfig
from das_gym.models.vilt.model import ViLT, ViLTConfig
from das_gym.problem.costs import adapter_macs, count_costs, transformer_macs

OWN = "own"
"""The part of a layer that is computed at each run; all others bear the name that the layer gives its memo."""


def encode_macs(vlp: VLP, batch: Mapping[str, Tensor]) -> int:
    """MACs of the encoders that read a batch: of `vlp.text_stream`, of `vlp.image_stream`, or of `vlp.encode`.

    Args:
        vlp: The model. One other than METER and ViLT counts all of its costs outside layers here, with the text.
        batch: `input_ids` (batch, tokens), `image` (batch, 3, height, width), or both; padding is computed too, and counts.

    Raises:
        TypeError: nothing tells the costs of the model.
    """
    config, macs = _config(vlp), 0
    if "input_ids" in batch:
        rows, tokens = batch["input_ids"].shape
        macs += rows * (count_costs(vlp, tokens).base_macs if config is None else _text_macs(config, tokens))
    if "image" in batch and config is not None:
        rows, _, height, width = batch["image"].shape
        macs += rows * _image_macs(config, (height // config.patch_size) * (width // config.patch_size))
    return macs


def _text_macs(config: METERConfig | ViLTConfig, tokens: int) -> int:
    if isinstance(config, ViLTConfig):
        return 0  # word embeddings are looked up
    blocks = config.text_layers * transformer_macs(config.text_width, tokens)
    return blocks + tokens * config.text_width * config.hidden_size


def _image_macs(config: METERConfig | ViLTConfig, patches: int) -> int:
    pixels = 3 * config.patch_size**2
    if isinstance(config, ViLTConfig):
        return patches * pixels * config.hidden_size
    width, tokens = config.vision_width, patches + 1
    blocks = config.vision_layers * transformer_macs(width, tokens)
    return patches * pixels * width + blocks + tokens * width * config.hidden_size


def pool_macs(vlp: VLP) -> int:
    """MACs of `vlp.pool` for one row: a square matrix for each stream that is read."""
    config = _config(vlp)
    return 0 if config is None else vlp.feature_size * config.hidden_size


def layer_macs(vlp: VLP, index: int, tokens: Mapping[str, int], skipped: bool, pooled_only: bool) -> dict[str, int]:
    """MACs of one run of a layer on one row, part by part.

    Args:
        vlp: The model.
        index: Which layer, in mask order.
        tokens: Tokens of each stream before the layer's stage, padding included.
        skipped: Whether the skip adapter runs instead of the layer.
        pooled_only: Whether the pooled token is the only query.

    Returns:
        `OWN`, what every run computes, and the MACs of each part that runs can share: its name is the second entry of
        the key that the layer gives its memo.

    Raises:
        TypeError: nothing tells the costs of the model.
    """
    config = _config(vlp)
    own = tokens[vlp.layers[index].stream]
    if config is None:
        costs = count_costs(vlp, tokens.get("text", own))
        return {OWN: int(costs.skip_macs[index] if skipped else costs.layer_macs[index] + costs.parallel_macs[index])}
    count = _meter_layer if isinstance(config, METERConfig) else _vilt_layer
    return count(config, own, sum(tokens.values()) - own, skipped, pooled_only)


def head_macs(head: nn.Module, features: Tensor) -> int:
    """MACs of the linear layers of a head that reads `features`: found by running it once."""
    macs = 0

    def count(module: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.in_features

    hooks = [part.register_forward_hook(count) for part in head.modules() if isinstance(part, nn.Linear)]
    try:
        head(features)
    finally:
        for hook in hooks:
            hook.remove()
    return macs


def _config(vlp: VLP) -> METERConfig | ViLTConfig | None:
    return vlp.config if isinstance(vlp, METER | ViLT) else None


@lru_cache(maxsize=4096)
def _meter_layer(config: METERConfig, own: int, other: int, skipped: bool, pooled_only: bool) -> dict[str, int]:
    """Self-attention is shared by runs that read the same stream, keys and values of the other stream likewise."""
    width, adapter = config.hidden_size, adapter_macs(config.hidden_size, config.bottleneck)
    queries = 1 if pooled_only else own
    if skipped:
        return {OWN: 0, "skip": queries * adapter_macs(width, config.skip_bottleneck)}
    rest = queries * (8 * width**2 + 2 * adapter)
    if pooled_only:
        own_attention, cross_attention = (_pooled_attention(width, config.num_heads, keys) for keys in (own, other))
        return {"self": own_attention + adapter, OWN: cross_attention + rest}
    return {
        "self": _attention(width, own, own) + 2 * own * width**2 + own * adapter,
        "cross": 2 * other * width**2,
        OWN: _attention(width, own, other) + rest,
    }


@lru_cache(maxsize=4096)
def _vilt_layer(config: ViLTConfig, own: int, other: int, skipped: bool, pooled_only: bool) -> dict[str, int]:
    """One layer a stage: there is nothing to share."""
    del other
    width, adapter = config.hidden_size, adapter_macs(config.hidden_size, config.bottleneck)
    queries = 1 if pooled_only else own
    if skipped:
        return {OWN: queries * adapter_macs(width, config.skip_bottleneck)}
    attention = _attention(width, own, own) + 2 * own * width**2
    if pooled_only:
        attention = _pooled_attention(width, config.num_heads, own)
    return {OWN: attention + queries * (8 * width**2 + 2 * adapter)}


def _attention(width: int, queries: int, keys: int) -> int:
    """MACs of queries, scores, their sum of values, and the projection out; without those of keys and values."""
    return 2 * queries * width**2 + 2 * queries * keys * width


def _pooled_attention(width: int, heads: int, keys: int) -> int:
    """MACs of `Attention.pooled`: four square matrices for the one query, and each head's scores and mix of whole tokens."""
    return 4 * width**2 + 2 * heads * keys * width
