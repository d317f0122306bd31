"""A ViLT subnet in transformers' conventions: a plain ViLT of transformers' where it is one."""

from __future__ import annotations

import math
import re
from typing import Any

from das_gym.models.portable import LAYER, NOTHING, Portable, PortableHead, layer_kinds, parallel_bottleneck, plain_names
from das_gym.models.vilt.inputs import VILT_MEAN, VILT_STD
from das_gym.models.vilt.model import ViLT

PIXELS = (
    'das_gym\'s own pixels are those of `AutoImageProcessor.from_pretrained(folder, backend="pil")`; where torchvision is '
    "installed, transformers resizes with that, and single pixels differ by 1/127 or so."
)
"""What a folder's reader has to know of its image processor."""

CODE = "das_gym.models.vilt.modeling_vilt_subnet"

_EMBEDDINGS = {
    "word_embeddings.weight": "embeddings.text_embeddings.word_embeddings.weight",
    "text_positions.weight": "embeddings.text_embeddings.position_embeddings.weight",
    "text_token_types.weight": "embeddings.text_embeddings.token_type_embeddings.weight",
    "text_norm": "embeddings.text_embeddings.LayerNorm",
    "token_types.weight": "embeddings.token_type_embeddings.weight",
    "class_token": "embeddings.cls_token",
    "image_positions": "embeddings.position_embeddings",
    "patch_embedding": "embeddings.patch_embeddings.projection",
    "final_norm": "layernorm",
    "pooler": "pooler.dense",
}
_BLOCK = {
    "attention_norm": "layernorm_before",
    "attention.out": "attention.output.dense",
    "attention": "attention.attention",
    "mlp_norm": "layernorm_after",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
}
"""Our names and transformers', or the beginnings of both."""

_TEXT_SUM = ("word_embeddings.weight", "text_positions.weight", "text_token_types.weight")
"""What is added up before the text's LayerNorm."""


def to_portable(vlp: ViLT, head: PortableHead) -> Portable:
    """A pruned ViLT and its head: transformers' own class where nothing is left of adapters, else `modeling_vilt_subnet`."""
    config, kinds, kind = vlp.config, layer_kinds(vlp), _plain_head(vlp, head)
    one_epsilon = config.norm_eps == config.text_norm_eps or (config.norm_eps > 0 and config.text_norm_eps > 0)
    bare = parallel_bottleneck(vlp, config.bottleneck) == 0
    if bare and set(kinds) <= {LAYER, NOTHING} and kind is not None and one_epsilon:
        return _plain(vlp, head, kinds, *kind)
    return _with_code(vlp, head, kinds)


def _plain_head(vlp: ViLT, head: PortableHead) -> tuple[str, str] | None:
    """The class of transformers for such a head, and what it calls the head; None where it has none."""
    size = vlp.config.hidden_size
    if head.num_images == 1 and head.width == 2 * size:
        return "ViltForQuestionAnswering", "classifier"
    if head.num_images > 1 and head.width == head.num_images * size:
        return "ViltForImagesAndTextClassification", "classifier"
    if head.num_images == 1 and head.width is None and head.num_labels == 1:
        return "ViltForImageAndTextRetrieval", "rank_output"
    return None


def _image_processor(vlp: ViLT) -> dict[str, Any]:
    return {
        "image_processor_type": "ViltImageProcessor",
        "processor_class": "ViltProcessor",
        "do_resize": True,
        "size": {"shortest_edge": vlp.config.image_size},
        "size_divisor": vlp.config.patch_size,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [VILT_MEAN] * 3,
        "image_std": [VILT_STD] * 3,
        "do_pad": True,
    }


def _with_code(vlp: ViLT, head: PortableHead, kinds: tuple[str, ...]) -> Portable:
    config, file = vlp.config, CODE.rpartition(".")[2]
    return Portable(
        config={
            "model_type": "vilt_subnet",
            "architectures": ["ViltSubnet"],
            "auto_map": {
                "AutoConfig": f"{file}.ViltSubnetConfig",
                "AutoModel": f"{file}.ViltSubnet",
                "AutoModelForVisualQuestionAnswering": f"{file}.ViltSubnet",
            },
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_heads,
            "blocks": kinds,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_positions,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "position_grid": config.grid,
            "bottleneck": parallel_bottleneck(vlp, config.bottleneck),
            "skip_bottleneck": 0 if NOTHING in kinds else config.skip_bottleneck,
            "num_images": head.num_images,
            "head_width": head.width,
            "hidden_dropout_prob": config.dropout,
            "layer_norm_eps": config.norm_eps,
            "text_norm_eps": config.text_norm_eps,
        },
        tensors=plain_names(vlp.state_dict()) | {f"classifier.{name}": t for name, t in head.tensors.items()},
        image_processor=_image_processor(vlp),
        model=f"{CODE}:ViltSubnet",
        code=CODE,
        notes=(PIXELS,),
    )


def _plain(vlp: ViLT, head: PortableHead, kinds: tuple[str, ...], architecture: str, head_name: str) -> Portable:
    config = vlp.config
    places = {old: new for new, old in enumerate(i for i, kind in enumerate(kinds) if kind == LAYER)}
    tensors = {_theirs(name, places): t for name, t in plain_names(vlp.state_dict()).items()}
    scale, notes = 1.0, tuple[str, ...]()
    if config.norm_eps != config.text_norm_eps:
        scale = 2.0 ** round(math.log2(config.norm_eps / config.text_norm_eps) / 2)
    if scale != 1:  # transformers has one epsilon: LayerNorm of s x with eps is that of x with eps / s ** 2
        tensors |= {name: tensors[name] * scale for name in (_theirs(ours, places) for ours in _TEXT_SUM)}
        notes = (
            f"The three tables of text embeddings are multiplied by {scale:g}: the LayerNorm behind them takes that out "
            f"again, and its epsilon, {config.norm_eps:g} here as everywhere in a ViLT of "
            f"transformers, then acts as the {config.text_norm_eps:g} of the model this was made from.",
        )
    heads = head.tensors if head.width else {name.removeprefix("0."): t for name, t in head.tensors.items()}
    return Portable(
        config={
            "model_type": "vilt",
            "architectures": [architecture],
            "vocab_size": config.vocab_size,
            "modality_type_vocab_size": 3,
            "max_position_embeddings": config.max_positions,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": len(places),
            "num_attention_heads": config.num_heads,
            "intermediate_size": 4 * config.hidden_size,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": config.norm_eps,
            "image_size": config.patch_size * config.grid,
            "patch_size": config.patch_size,
            "num_images": head.num_images if head.num_images > 1 else -1,
        },
        tensors={f"vilt.{name}": t for name, t in tensors.items()} | {f"{head_name}.{name}": t for name, t in heads.items()},
        image_processor=_image_processor(vlp),
        model=f"transformers:{architecture}",
        notes=(*notes, PIXELS),
    )


def _theirs(name: str, places: dict[int, int]) -> str:
    """The name in transformers for a tensor of ours; blocks are counted anew."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    inner = name if block is None else block[2]
    table = _EMBEDDINGS if block is None else _BLOCK
    start = next(ours for ours in table if inner == ours or inner.startswith(f"{ours}."))
    renamed = table[start] + inner.removeprefix(start)
    return renamed if block is None else f"encoder.layer.{places[int(block[1])]}.{renamed}"
