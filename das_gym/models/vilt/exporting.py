"""A pruned ViLT in transformers' form: as transformers' own ViLT if it has no adapters, else with code of ours."""

from __future__ import annotations

import math
import re
from typing import Any

from das_gym.models.adapters import parallel_adapters
from das_gym.models.exporting import ExportedHead, ExportedModel, export_with_code, layer_kinds
from das_gym.models.vilt.inputs import VILT_MEAN, VILT_STD
from das_gym.models.vilt.model import ViLT

TRANSFORMERS_PARTS = {
    "embeddings.text_embeddings.word_embeddings": "word_embeddings",
    "embeddings.text_embeddings.position_embeddings": "text_positions",
    "embeddings.text_embeddings.token_type_embeddings": "text_token_types",
    "embeddings.text_embeddings.LayerNorm": "text_norm",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "image_positions",
    "embeddings.patch_embeddings.projection": "patch_embedding",
    "layernorm": "final_norm",
    "pooler.dense": "pooler",
}
TRANSFORMERS_BLOCK_PARTS = {
    "attention.attention.query": "attention.query",
    "attention.attention.key": "attention.key",
    "attention.attention.value": "attention.value",
    "attention.output.dense": "attention.out",
    "layernorm_before": "attention_norm",
    "layernorm_after": "mlp_norm",
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
}
"""Names of modules and parameters in transformers, and ours."""

PIXELS_NOTE = (
    'das_gym\'s own pixels are those of `AutoImageProcessor.from_pretrained(folder, backend="pil")`. If torchvision is '
    "installed, transformers resizes with that, and single pixels differ by about 1/127."
)


def export(vlp: ViLT, head: ExportedHead) -> ExportedModel:
    """Return a pruned ViLT and its head in transformers' form."""
    image_processor = {
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
    plain = _plain_head(vlp.config.hidden_size, head)
    has_adapters = bool(parallel_adapters(vlp)) or "adapter" in layer_kinds(vlp)
    if plain is not None and not has_adapters and vlp.config.norm_eps > 0 and vlp.config.text_norm_eps > 0:
        return _export_plain(vlp, head, image_processor, *plain)
    module = "das_gym.models.vilt.modeling_vilt_subnet"
    code = (module, "das_gym.models.vilt.network")
    return export_with_code(vlp, head, f"{module}:ViltSubnet", code, image_processor, (PIXELS_NOTE,))


def _plain_head(size: int, head: ExportedHead) -> tuple[str, str] | None:
    """Return transformers' class for such a head, and its name for the head; None if it has none."""
    if head.num_images == 1 and head.width == 2 * size:
        return "ViltForQuestionAnswering", "classifier"
    if head.num_images > 1 and head.width == head.num_images * size:
        return "ViltForImagesAndTextClassification", "classifier"
    if head.num_images == 1 and head.width is None and head.num_labels == 1:
        return "ViltForImageAndTextRetrieval", "rank_output"
    return None


def _export_plain(
    vlp: ViLT, head: ExportedHead, image_processor: dict[str, Any], architecture: str, head_name: str
) -> ExportedModel:
    """Return a model that transformers' own class loads; its blocks are renumbered."""
    config = vlp.config
    notes: tuple[str, ...] = (PIXELS_NOTE,)
    blocks = [str(index) for index, kind in enumerate(layer_kinds(vlp)) if kind == "layer"]
    tensors = {}
    for name, tensor in vlp.state_dict().items():
        block = re.fullmatch(r"blocks\.(\d+)\.layer\.(.+)", name)
        inner, parts = (block[2], TRANSFORMERS_BLOCK_PARTS) if block else (name, TRANSFORMERS_PARTS)
        theirs, ours = next(part for part in parts.items() if inner == part[1] or inner.startswith(f"{part[1]}."))
        place = f"encoder.layer.{blocks.index(block[1])}." if block else ""
        tensors[f"vilt.{place}{theirs}{inner.removeprefix(ours)}"] = tensor
    scale = 2.0 ** round(math.log2(config.norm_eps / config.text_norm_eps) / 2)
    if scale != 1:  # transformers has one epsilon, and LayerNorm of s * x with eps is that of x with eps / s ** 2
        for part in ("word", "position", "token_type"):
            name = f"vilt.embeddings.text_embeddings.{part}_embeddings.weight"
            tensors[name] = tensors[name] * scale
        notes = (
            f"The three tables of text embeddings are multiplied by {scale:g}. The LayerNorm after them undoes that, and "
            f"its epsilon, {config.norm_eps:g} as everywhere in transformers' ViLT, then acts as {config.text_norm_eps:g}.",
            *notes,
        )
    for name, tensor in head.tensors.items():
        tensors[f"{head_name}.{name if head.width else name.removeprefix('0.')}"] = tensor
    return ExportedModel(
        config={
            "model_type": "vilt",
            "architectures": [architecture],
            "vocab_size": config.vocab_size,
            "modality_type_vocab_size": 3,
            "max_position_embeddings": config.max_positions,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": len(blocks),
            "num_attention_heads": config.num_heads,
            "intermediate_size": 4 * config.hidden_size,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": config.norm_eps,
            "image_size": config.patch_size * config.grid,
            "patch_size": config.patch_size,
            "num_images": head.num_images if head.num_images > 1 else -1,
        },
        tensors=tensors,
        image_processor=image_processor,
        model=f"transformers:{architecture}",
        notes=notes,
    )
