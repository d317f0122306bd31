"""ViLT's checkpoints: official names and transformers', sizes, and what is computed from a pre-training file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from das_gym.models.formats import (
    HEADS,
    REFERENCE_RULES,
    Family,
    Format,
    Heads,
    Shapes,
    adapter_rules,
    bottlenecks,
    count,
    derive_rank_output,
    derive_second_image,
    grid_side,
    linear_rules,
)
from das_gym.models.portable import DAS_GYM, LAYER
from das_gym.models.vilt.model import ViLT, ViLTConfig
from das_gym.models.vilt.portable import to_portable

_TRANSFORMERS_FIELDS = {
    "num_heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
    "text_norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
}
"""Config fields that no shape tells, and what transformers' config.json calls them."""

_TEXT_EMBEDDINGS: dict[str, str] = {
    "word_embeddings.weight": "word_embeddings.weight",
    "position_embeddings.weight": "text_positions.weight",
    "token_type_embeddings.weight": "text_token_types.weight",
    "LayerNorm.weight": "text_norm.weight",
    "LayerNorm.bias": "text_norm.bias",
}
_OUR_BLOCK = r"blocks.\1.layer"


def vilt_sizes(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields that the shapes of an official ViLT checkpoint tell."""
    del config
    patch = shapes["transformer.patch_embed.proj.weight"][-1]
    grid = grid_side(shapes["transformer.pos_embed"][-2])
    words = shapes["text_embeddings.word_embeddings.weight"]
    return {
        "image_size": patch * grid,
        "patch_size": patch,
        "position_grid": grid,
        "hidden_size": words[1],
        "num_layers": count(shapes, "transformer.blocks"),
        "vocab_size": words[0],
        "max_positions": shapes["text_embeddings.position_embeddings.weight"][0],
        **bottlenecks(shapes, "transformer.blocks.0.adapter0.down_proj.weight", "adapter_list.0.0.down_proj.weight"),
    }


def transformers_sizes(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields that shapes and config.json of a transformers ViLT tell."""
    kind, act = config.get("model_type", "vilt"), config.get("hidden_act", "gelu")
    if kind != "vilt" or act != "gelu":
        raise ValueError(f"it holds a {kind} model with {act}; of transformers' models only ViLT with gelu is read")
    patch = shapes["embeddings.patch_embeddings.projection.weight"][-1]
    grid = grid_side(shapes["embeddings.position_embeddings"][-2])
    words = shapes["embeddings.text_embeddings.word_embeddings.weight"]
    return {
        "image_size": patch * grid,
        "patch_size": patch,
        "position_grid": grid,
        "hidden_size": words[1],
        "num_layers": count(shapes, "encoder.layer"),
        "vocab_size": words[0],
        "max_positions": shapes["embeddings.text_embeddings.position_embeddings.weight"][0],
        **{ours: config[theirs] for ours, theirs in _TRANSFORMERS_FIELDS.items() if theirs in config},
        **({"bottleneck": 0, "skip_bottleneck": 0} if DAS_GYM in config else {}),
    }


def exported_sizes(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields that the config.json of an exported subnet tells."""
    del shapes
    same = ("image_size", "patch_size", "position_grid", "hidden_size", "vocab_size", "bottleneck", "skip_bottleneck")
    other = {
        "num_heads": "num_attention_heads",
        "max_positions": "max_position_embeddings",
        "norm_eps": "layer_norm_eps",
        "text_norm_eps": "text_norm_eps",
        "dropout": "hidden_dropout_prob",
    }
    fields = {name: config[name] for name in same} | {ours: config[theirs] for ours, theirs in other.items()}
    return {**fields, "num_layers": len(config["blocks"])}


VILT_FORMAT = Format(
    title="ViLT checkpoint",
    marks=("text_embeddings.word_embeddings.weight", "transformer.pos_embed"),
    rules=(
        *REFERENCE_RULES,
        *((re.escape(f"text_embeddings.{theirs}"), ours) for theirs, ours in _TEXT_EMBEDDINGS.items()),
        (r"text_embeddings\.position_ids", None),
        (r"transformer\.cls_token", "class_token"),
        (r"transformer\.pos_embed", "image_positions"),
        (r"transformer\.patch_embed\.proj\.(weight|bias)", r"patch_embedding.\1"),
        (r"transformer\.norm\.(weight|bias)", r"final_norm.\1"),
        (r"pooler\.dense\.(weight|bias)", r"pooler.\1"),
        (
            r"transformer\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)",
            tuple(rf"{_OUR_BLOCK}.attention.{part}.\2" for part in ("query", "key", "value")),
        ),
        *linear_rules(
            r"transformer\.blocks\.(\d+)",
            _OUR_BLOCK,
            {
                "attn.proj": "attention.out",
                "norm1": "attention_norm",
                "norm2": "mlp_norm",
                "mlp.fc1": "mlp_in",
                "mlp.fc2": "mlp_out",
            },
        ),
        *adapter_rules(r"transformer\.blocks\.(\d+)\.adapter0", f"{_OUR_BLOCK}.attention_adapter"),
        *adapter_rules(r"transformer\.blocks\.(\d+)\.adapter1", f"{_OUR_BLOCK}.mlp_adapter"),
        *adapter_rules(r"adapter_list\.(\d+)\.0", r"blocks.\1.skip_adapter"),
    ),
    sizes=vilt_sizes,
)

TRANSFORMERS_FORMAT = Format(
    title="transformers ViLT folder",
    marks=("embeddings.text_embeddings.word_embeddings.weight",),
    rules=(
        *((re.escape(f"embeddings.text_embeddings.{k}"), v) for k, v in _TEXT_EMBEDDINGS.items()),
        (r"embeddings\.text_embeddings\.position_ids", None),
        (r"embeddings\.token_type_embeddings\.weight", "token_types.weight"),
        (r"embeddings\.cls_token", "class_token"),
        (r"embeddings\.position_embeddings", "image_positions"),
        (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embedding.\1"),
        (r"layernorm\.(weight|bias)", r"final_norm.\1"),
        (r"pooler\.dense\.(weight|bias)", r"pooler.\1"),
        *linear_rules(
            r"encoder\.layer\.(\d+)",
            _OUR_BLOCK,
            {
                **{f"attention.attention.{part}": f"attention.{part}" for part in ("query", "key", "value")},
                "attention.output.dense": "attention.out",
                "layernorm_before": "attention_norm",
                "layernorm_after": "mlp_norm",
                "intermediate.dense": "mlp_in",
                "output.dense": "mlp_out",
            },
        ),
        (r"mlm_score\.decoder\.bias", f"{HEADS}mlm_score.bias"),
        (r"((?:classifier|rank_output|mlm_score)\..+)", rf"{HEADS}\1"),
    ),
    sizes=transformers_sizes,
    prefix="vilt.",
    mask=lambda config: [False] * config["num_hidden_layers"] if DAS_GYM in config else None,
)

EXPORTED_FORMAT = Format(
    title="exported ViLT subnet",
    marks=("word_embeddings.weight", "image_positions"),
    rules=(
        (r"(classifier\..+)", rf"{HEADS}\1"),
        (r"blocks\.(\d+)\.((?:norm|down|up)\..+)", r"blocks.\1.skip_adapter.\2"),
        (r"blocks\.(\d+)\.(.+)", r"blocks.\1.layer.\2"),
        (r"(.+)", r"\1"),
    ),
    sizes=exported_sizes,
    mask=lambda config: [kind != LAYER for kind in config["blocks"]],
)


def derive(named: dict[str, Tensor], heads: Heads, config: ViLTConfig) -> list[str]:
    """Add what can be derived, and give heads of transformers their names; returns what was derived, and how."""
    notes = derive_second_image(named)
    first = heads.get("classifier", {}).get("0.weight")
    if first is not None:  # transformers calls both by one name; NLVR2's reads two images
        heads["vqa_classifier" if first.shape[-1] == config.hidden_size else "nlvr2_classifier"] = heads.pop("classifier")
    mlm = heads.get("mlm_score")
    if mlm is not None and "decoder.weight" not in mlm and "word_embeddings.weight" in named:
        mlm["decoder.weight"] = named["word_embeddings.weight"].clone()
        notes.append("mlm_score.decoder.weight: the word embeddings, to which transformers ties it")
    return notes + derive_rank_output(heads)


def _oddities(config: ViLTConfig) -> list[str]:
    """What ViLT-B/32 does not have."""
    base = ViLTConfig()
    if config.hidden_size != base.hidden_size or config.num_layers == base.num_layers:
        return []
    return [f"num_layers={config.num_layers}, ViLT of that width has {base.num_layers}: the file may lack its last ones"]


FAMILY = Family(
    name="vilt",
    model=ViLT,
    config=ViLTConfig,
    formats=(VILT_FORMAT, TRANSFORMERS_FORMAT, EXPORTED_FORMAT),
    derive=derive,
    head_fields={"num_heads": "hidden_size"},
    oddities=_oddities,
    portable=to_portable,
)
