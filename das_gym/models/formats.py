"""The checkpoint formats: which tensors tell them, and how their names become ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from das_gym.models.sizes import Shapes, meter_sizes, transformers_sizes, vilt_sizes

Target = str | tuple[str, ...] | None

HEADS = "heads."
"""Before the names of head tensors, `heads.<head>.<tensor>`."""

SEARCH = "search."
"""Before what a DAS search leaves in its checkpoints: `search.das_gate`, `search.skip_num`."""


@dataclass(frozen=True)
class Format:
    """One way to name the tensors of a model.

    Attributes:
        title: What to call it in messages.
        model: Key of the model's class in `checkpoints.MODELS`.
        marks: Tensors that every such file has and no other format has.
        rules: Pattern of a whole name, and our name for it; several names take equal parts of a packed tensor,
            None means that the original never uses it either. The first match counts.
        sizes: Config fields that the shapes determine.
        prefix: What some files put before every name; marks, rules and sizes do without it.
    """

    title: str
    model: str
    marks: tuple[str, ...]
    rules: tuple[tuple[str, Target], ...]
    sizes: Callable[[Shapes], dict[str, Any]]
    prefix: str = ""

    def our_names(self, name: str) -> tuple[str, ...] | None:
        """Our names for a tensor of the file: none where it is a known left-over; None where no rule knows it."""
        for pattern, target in self.rules:
            match = re.fullmatch(pattern, name.removeprefix(self.prefix))
            if match:
                targets = () if target is None else (target,) if isinstance(target, str) else target
                return tuple(match.expand(t) for t in targets)
        return None


def _adapter(theirs: str, ours: str) -> tuple[tuple[str, Target], ...]:
    """The rules of an adapter; `theirs` is a pattern with one group, the layer's number."""
    parts = (("adapter_layer_norm_before", "norm"), ("down_proj", "down"), ("up_proj", "up"))
    return tuple((rf"{theirs}\.{old}\.(weight|bias)", rf"{ours}.{new}.\2") for old, new in parts)


def _linears(theirs: str, ours: str, parts: Mapping[str, str]) -> tuple[tuple[str, Target], ...]:
    """The rules of modules with weight and bias; `theirs` is a pattern with one group, the layer's number."""
    return tuple((rf"{theirs}\.{re.escape(old)}\.(weight|bias)", rf"{ours}.{new}.\2") for old, new in parts.items())


_REFERENCE_RULES: tuple[tuple[str, Target], ...] = (
    (r"token_type_embeddings\.weight", "token_types.weight"),
    (r"itm_score\.fc\.(weight|bias)", rf"{HEADS}itm_score.\1"),
    (r"((?:vqa_classifier|nlvr2_classifier|snli_classifier|rank_output|mlm_score|mpp_score)\..+)", rf"{HEADS}\1"),
    (r"(das_gate|skip_num)", rf"{SEARCH}\1"),
)


def _fusion_rules(stream: str, letter: str) -> tuple[tuple[str, Target], ...]:
    theirs, ours = rf"cross_modal_{stream}_layers\.(\d+)", rf"{stream}_layers.\1.layer"
    return (
        *_linears(
            theirs,
            ours,
            {
                **{f"attention.self.{part}": f"self_attention.{part}" for part in ("query", "key", "value")},
                **{f"crossattention.self.{part}": f"cross_attention.{part}" for part in ("query", "key", "value")},
                "attention.output.dense": "self_attention.out",
                "attention.output.LayerNorm": "self_norm",
                "crossattention.output.dense": "cross_attention.out",
                "crossattention.output.LayerNorm": "cross_norm",
                "intermediate.dense": "feed_in",
                "output.dense": "feed_out",
                "output.LayerNorm": "feed_norm",
            },
        ),
        *_adapter(rf"{theirs}\.attention\.output\.adapter", f"{ours}.self_adapter"),
        *_adapter(rf"{theirs}\.crossattention\.output\.adapter", f"{ours}.cross_adapter"),
        *_adapter(rf"{theirs}\.adapter", f"{ours}.feed_adapter"),
        *_adapter(rf"adapter_list_{letter}\.(\d+)\.0", rf"{stream}_layers.\1.skip_adapter"),
        (rf"cross_modal_{stream}_transform\.(weight|bias)", rf"{stream}_transform.\1"),
        (rf"cross_modal_{stream}_pooler\.dense\.(weight|bias)", rf"{stream}_pooler.\1"),
    )


_CLIP = r"vit_model\.visual"
_CLIP_BLOCK, _OUR_CLIP_BLOCK = rf"{_CLIP}\.transformer\.resblocks\.(\d+)", r"image_encoder.encoder.layers.\1"

METER_FORMAT = Format(
    title="METER checkpoint",
    model="meter",
    marks=("cross_modal_text_transform.weight", "vit_model.visual.conv1.weight"),
    rules=(
        (r"token4classifier", "first_text_token"),
        *_REFERENCE_RULES,
        *_fusion_rules("text", "l"),
        *_fusion_rules("image", "v"),
        (rf"{_CLIP}\.class_embedding", "image_encoder.embeddings.class_embedding"),
        (rf"{_CLIP}\.positional_embedding", "image_encoder.embeddings.position_embedding.weight"),
        (rf"{_CLIP}\.conv1\.weight", "image_encoder.embeddings.patch_embedding.weight"),
        (rf"{_CLIP}\.ln_pre\.(weight|bias)", r"image_encoder.pre_layrnorm.\1"),
        (rf"{_CLIP}\.ln_post\.(weight|bias)", r"image_encoder.post_layernorm.\1"),
        (
            rf"{_CLIP_BLOCK}\.attn\.in_proj_(weight|bias)",
            tuple(rf"{_OUR_CLIP_BLOCK}.self_attn.{part}_proj.\2" for part in "qkv"),
        ),
        *_linears(
            _CLIP_BLOCK,
            _OUR_CLIP_BLOCK,
            {
                "attn.out_proj": "self_attn.out_proj",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
            },
        ),
        (r"vit_model\.(?:positional_embedding|ln_final\.(?:weight|bias))", None),
        (r"text_transformer\.(?:embeddings\.position_ids|pooler\.dense\.(?:weight|bias))", None),
        (r"text_transformer\.(embeddings\..+|encoder\.layer\..+)", r"text_encoder.\1"),
    ),
    sizes=meter_sizes,
)

_TEXT_EMBEDDINGS: dict[str, str] = {
    "word_embeddings.weight": "word_embeddings.weight",
    "position_embeddings.weight": "text_positions.weight",
    "token_type_embeddings.weight": "text_token_types.weight",
    "LayerNorm.weight": "text_norm.weight",
    "LayerNorm.bias": "text_norm.bias",
}
_OUR_BLOCK = r"blocks.\1.layer"

VILT_FORMAT = Format(
    title="ViLT checkpoint",
    model="vilt",
    marks=("text_embeddings.word_embeddings.weight", "transformer.pos_embed"),
    rules=(
        *_REFERENCE_RULES,
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
        *_linears(
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
        *_adapter(r"transformer\.blocks\.(\d+)\.adapter0", f"{_OUR_BLOCK}.attention_adapter"),
        *_adapter(r"transformer\.blocks\.(\d+)\.adapter1", f"{_OUR_BLOCK}.mlp_adapter"),
        *_adapter(r"adapter_list\.(\d+)\.0", r"blocks.\1.skip_adapter"),
    ),
    sizes=vilt_sizes,
)

TRANSFORMERS_FORMAT = Format(
    title="transformers ViLT folder",
    model="vilt",
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
        *_linears(
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
)

FORMATS = (METER_FORMAT, VILT_FORMAT, TRANSFORMERS_FORMAT)
