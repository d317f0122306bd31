"""What the reference computes from a pre-training checkpoint when it loads one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from das_gym.models.meter.model import METERConfig
from das_gym.models.sizes import Config, grid_side

METER_POSITIONS = "image_encoder.embeddings.position_embedding.weight"
FIRST_TOKEN = "first_text_token"


def derive(named: dict[str, Tensor], heads: dict[str, dict[str, Tensor]], config: Config) -> list[str]:
    """Add what can be derived to tensors (under our names) and heads; returns what was, and how."""
    notes = []
    types = named.get("token_types.weight")
    if types is not None and len(types) == 2:
        named["token_types.weight"] = types[[0, 1, 1]]
        notes.append("token_types.weight: row 2 (second image) is a copy of row 1")
    if isinstance(config, METERConfig):
        notes += _derive_positions(named, config) + _derive_first_token(named, config)
    return notes + _derive_heads(named, heads, config)


def _derive_positions(named: dict[str, Tensor], config: METERConfig) -> list[str]:
    positions = named.get(METER_POSITIONS)
    if positions is None or positions.ndim != 2 or len(positions) == config.image_tokens:
        return []
    named[METER_POSITIONS] = resize_positions(positions, config.image_size // config.patch_size)
    return [f"{METER_POSITIONS}: resized to {config.image_size} px"]


def _derive_first_token(named: dict[str, Tensor], config: METERConfig) -> list[str]:
    """METER's first text token starts as the text encoder's embedding of the token 0 at the first position, 2."""
    prefix = "text_encoder.embeddings"
    parts = [f"{prefix}.{part}_embeddings.weight" for part in ("word", "position", "token_type")]
    norm = [f"{prefix}.LayerNorm.{part}" for part in ("weight", "bias")]
    width = config.hidden_size
    fits = all(name in named and named[name].shape[-1:] == (width,) for name in parts + norm)
    if FIRST_TOKEN in named or not fits or config.max_positions < 3:
        return []
    word, position, kind = (named[name] for name in parts)
    weight, bias = (named[name].float() for name in norm)
    start = (word[0] + position[2] + kind[0]).float()
    named[FIRST_TOKEN] = F.layer_norm(start, (width,), weight, bias, eps=1e-5)[None, None]
    return [f"{FIRST_TOKEN}: the text encoder's embedding of its start token"]


def _derive_heads(named: dict[str, Tensor], heads: dict[str, dict[str, Tensor]], config: Config) -> list[str]:
    notes = []
    first = heads.get("classifier", {}).get("0.weight")
    if first is not None:  # transformers calls both by one name; NLVR2's reads two images
        heads["vqa_classifier" if first.shape[-1] == config.hidden_size else "nlvr2_classifier"] = heads.pop("classifier")
    mlm = heads.get("mlm_score")
    if mlm is not None and "decoder.weight" not in mlm and "word_embeddings.weight" in named:
        mlm["decoder.weight"] = named["word_embeddings.weight"].clone()
        notes.append("mlm_score.decoder.weight: the word embeddings, to which transformers ties it")
    itm = heads.get("itm_score", {})
    if "rank_output" not in heads and itm.keys() >= {"weight", "bias"}:
        heads["rank_output"] = {part: itm[part][1:2].clone() for part in ("weight", "bias")}
        notes.append("rank_output: row 1 of itm_score")
    return notes


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """(1 + side ** 2, width) position embeddings from those of another square grid; bicubic, as METER does.

    Args:
        positions: (1 + n ** 2, width) float, the class token's first.
        side: Patches a side of the new grid, at least 1.
    """
    old = grid_side(len(positions))
    grid = positions[1:].float().T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat((positions[:1].float(), grid.flatten(2)[0].T))
