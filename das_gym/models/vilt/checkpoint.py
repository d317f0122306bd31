"""ViLT's checkpoints: official names and transformers', sizes, and what is computed from a pre-training file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from das_gym.files import METADATA_KEY
from das_gym.models.formats import (
    HEADS,
    REFERENCE_RULES,
    Family,
    Format,
    Heads,
    Shapes,
    adapter_rules,
    adapter_widths,
    count_modules,
    derive_rank_output,
    derive_second_image,
    grid_side,
    module_rules,
)
from das_gym.models.vilt.exporting import TRANSFORMERS_BLOCK_PARTS, TRANSFORMERS_PARTS, export
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig

_TRANSFORMERS_FIELDS = {
    "num_heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
    "text_norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
}
"""Config fields that tensor shapes do not determine, and their names in transformers' config.json."""

_OUR_BLOCK = r"blocks.\1.layer."


def _sizes(shapes: Shapes, texts: str, positions: str, patches: str, blocks: str) -> dict[str, Any]:
    """Return config fields from the shapes of tensors with these names."""
    patch = shapes[patches][-1]
    grid = grid_side(shapes[positions][-2])
    vocab_size, hidden_size = shapes[f"{texts}.word_embeddings.weight"]
    return {
        "image_size": patch * grid,
        "patch_size": patch,
        "position_grid": grid,
        "hidden_size": hidden_size,
        "num_layers": count_modules(shapes, blocks),
        "vocab_size": vocab_size,
        "max_positions": shapes[f"{texts}.position_embeddings.weight"][0],
    }


def vilt_sizes(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config fields from the shapes of an official ViLT checkpoint."""
    del config
    names = "text_embeddings", "transformer.pos_embed", "transformer.patch_embed.proj.weight", "transformer.blocks"
    adapters = "transformer.blocks.0.adapter0.down_proj.weight", "adapter_list.0.0.down_proj.weight"
    return {**_sizes(shapes, *names), **adapter_widths(shapes, *adapters)}


def transformers_sizes(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config fields from shapes and config.json of a transformers ViLT; ValueError for other models."""
    kind = config.get("model_type", "vilt")
    act = config.get("hidden_act", "gelu")
    if kind != "vilt" or act != "gelu":
        raise ValueError(f"it holds a {kind} model with {act}; of transformers' models only ViLT with gelu is read")
    patches = "embeddings.patch_embeddings.projection.weight"
    found = _sizes(shapes, "embeddings.text_embeddings", "embeddings.position_embeddings", patches, "encoder.layer")
    found |= {ours: config[theirs] for ours, theirs in _TRANSFORMERS_FIELDS.items() if theirs in config}
    return found | ({"bottleneck": 0, "skip_bottleneck": 0} if METADATA_KEY in config else {})


_QKV = {part: f"attention.{part}" for part in ("query", "key", "value")}

_OFFICIAL_PARTS = {
    "text_embeddings.word_embeddings": "word_embeddings",
    "text_embeddings.position_embeddings": "text_positions",
    "text_embeddings.token_type_embeddings": "text_token_types",
    "text_embeddings.LayerNorm": "text_norm",
    "transformer.cls_token": "class_token",
    "transformer.pos_embed": "image_positions",
    "transformer.patch_embed.proj": "patch_embedding",
    "transformer.norm": "final_norm",
    "pooler.dense": "pooler",
}
_OFFICIAL_BLOCK = r"transformer\.blocks\.(\d+)\."
_OFFICIAL_BLOCK_PARTS = {
    "attn.proj": "attention.out",
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
}

VILT_FORMAT = Format(
    title="ViLT checkpoint",
    marks=("text_embeddings.word_embeddings.weight", "transformer.pos_embed"),
    rules=(
        *REFERENCE_RULES,
        *module_rules(_OFFICIAL_PARTS),
        (r"text_embeddings\.position_ids", None),
        (rf"{_OFFICIAL_BLOCK}attn\.qkv\.(weight|bias)", tuple(rf"{_OUR_BLOCK}{part}.\2" for part in _QKV.values())),
        *module_rules(_OFFICIAL_BLOCK_PARTS, _OFFICIAL_BLOCK, _OUR_BLOCK),
        *adapter_rules(rf"{_OFFICIAL_BLOCK}adapter0", f"{_OUR_BLOCK}attention_adapter"),
        *adapter_rules(rf"{_OFFICIAL_BLOCK}adapter1", f"{_OUR_BLOCK}mlp_adapter"),
        *adapter_rules(r"adapter_list\.(\d+)\.0", r"blocks.\1.skip_adapter"),
    ),
    sizes=vilt_sizes,
)

TRANSFORMERS_FORMAT = Format(
    title="transformers ViLT folder",
    marks=("embeddings.text_embeddings.word_embeddings.weight",),
    rules=(
        *module_rules(TRANSFORMERS_PARTS),
        (r"embeddings\.text_embeddings\.position_ids", None),
        *module_rules(TRANSFORMERS_BLOCK_PARTS, r"encoder\.layer\.(\d+)\.", _OUR_BLOCK),
        (r"mlm_score\.decoder\.bias", f"{HEADS}mlm_score.bias"),
        (r"((?:classifier|rank_output|mlm_score)\..+)", rf"{HEADS}\1"),
    ),
    sizes=transformers_sizes,
    prefix="vilt.",
)


def derive(named: dict[str, Tensor], heads: Heads, config: ViLTConfig) -> None:
    """Add tensors that ViLT's code derives from others, and give heads of transformers their names."""
    derive_second_image(named)
    first = heads.get("classifier", {}).get("0.weight")
    if first is not None:  # transformers calls both by one name; NLVR2's reads two images
        heads["vqa_classifier" if first.shape[-1] == config.hidden_size else "nlvr2_classifier"] = heads.pop("classifier")
    mlm = heads.get("mlm_score")
    if mlm is not None and "decoder.weight" not in mlm and "word_embeddings.weight" in named:
        mlm["decoder.weight"] = named["word_embeddings.weight"].clone()  # transformers ties them
    derive_rank_output(heads)


FAMILY = Family(
    name="vilt",
    model=ViLT,
    config=ViLTConfig,
    formats=(VILT_FORMAT, TRANSFORMERS_FORMAT),
    derive=derive,
    head_fields={"num_heads": "hidden_size"},
    export=export,
)
