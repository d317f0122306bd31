"""ViLT as a model whose blocks can be skipped, and its checkpoints."""

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from das_gym.files import METADATA_KEY
from das_gym.models.adapters import parallel_adapters, skip_adapter
from das_gym.models.attention import fold_single_queries
from das_gym.models.base import VLP, Layer, Memo, Site, SkippableLayer, State, Stream, no_memo
from das_gym.models.checkpoints import FamilyModel
from das_gym.models.formats import (
    HEADS,
    REFERENCE_RULES,
    ExportedHead,
    ExportedModel,
    Family,
    Format,
    Heads,
    Shapes,
    adapter_rules,
    adapter_widths,
    count_modules,
    derive_rank_output,
    derive_second_image,
    export_with_code,
    grid_side,
    layer_kinds,
    module_rules,
)
from das_gym.models.inputs import Processor, find_tokenizer
from das_gym.models.vilt.inputs import VILT_MEAN, VILT_STD, vilt_transform
from das_gym.models.vilt.network import ViLTBlock, ViLTConfig, ViLTNetwork

MAX_TEXT_LENGTH = 40
"""Default length of texts in tokens. Source: ViLT's released scripts."""

_TRANSFORMERS_FIELDS = {
    "num_heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
    "text_norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
}
"""Config fields that tensor shapes do not determine, and their names in transformers' config.json."""

_OUR_BLOCK = r"blocks.\1.layer."

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
    **{f"attention.{ours}": ours for ours in _QKV.values()},
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


class ViLT(ViLTNetwork, FamilyModel, VLP):  # type: ignore[override]
    """ViLT with parallel adapters in its blocks and a skip adapter for each.

    Layers 0-11 are the blocks. A batch holds `image` (batch, 3, height, width) float, both sides multiples
    of the patch size, `input_ids` (batch, tokens) int64 and `attention_mask` of the same shape, 1 = a real token.
    Smaller images of a batch are padded with zeros at their right and bottom: a patch whose top-left pixel is zero in sum is
    not seen, and position embeddings are stretched over the rest of each image. So an example's features depend on nothing
    else in its batch. Patches keep their order, where the reference shuffles them. The default is ViLT-B/32 at 384 px.
    """

    tunable = ("adapter", "pooler", "token_types")

    def __init__(self, config: ViLTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ViLTConfig()
        self.feature_size = config.hidden_size
        self.head_size = 2 * config.hidden_size
        self.layers = tuple(Layer(f"block.{i}", "joint", i, "block") for i in range(config.num_layers))

        skip = partial(skip_adapter, config.hidden_size, config.skip_bottleneck)
        self.build_network(config, lambda index: SkippableLayer(ViLTBlock(config), skip()))
        fold_single_queries(self)
        # As in ViLT: N(0, 0.02), and 0 for biases. LayerNorms start as the identity.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.image_positions, std=0.02)

    def make_processor(self, folder: Path, max_text_length: int | None = None) -> Processor:
        """Return what makes BERT's tokens, whose padding has id 0, and ViLT's pixels; see `VLP.make_processor`."""
        tokenizer = find_tokenizer(folder, self.config.vocab_size, pad=0)
        longest = min(max_text_length or MAX_TEXT_LENGTH, self.config.max_positions)
        return Processor(tokenizer, vilt_transform, self.config.image_size, self.config.patch_size, longest)

    def skippable_layer(self, index: int) -> SkippableLayer:
        return cast(SkippableLayer, self.blocks[index])

    def sites(self, index: int) -> tuple[Site, ...]:
        """Return attention and multi-layer perceptron of a block; DAS inserts its adapters next to them."""
        block: Any = self.skippable_layer(index).module_for(False)
        return (
            Site("attention", block.attention, "out", ("query", "value"), partial(setattr, block, "attention_adapter")),
            Site("mlp", block, "mlp_out", (), partial(setattr, block, "mlp_adapter")),
        )

    def text_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return word embeddings with positions, before token types and the text's LayerNorm (its input trains)."""
        return self.embed_text(batch["input_ids"]), batch["attention_mask"][:, None, None].bool()

    def image_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return patch embeddings with positions, before token types."""
        image, seen = self.embed_image(batch["image"])
        return image, seen[:, None, None]

    def embed(self, encoded: State) -> State:
        joint = self.join_streams(encoded.hidden["text"], encoded.hidden["image"], encoded.extras.get("image_types", 1))
        masks = [encoded.attend["text"], encoded.attend["image"]]
        if masks[0] is None and masks[1] is None:
            return State({"joint": joint}, {"joint": None})
        for number, stream in enumerate(("text", "image")):
            if masks[number] is None:
                batch, tokens = encoded.hidden[stream].shape[:2]
                masks[number] = torch.ones(batch, 1, 1, tokens, dtype=torch.bool, device=joint.device)
        return State({"joint": joint}, {"joint": torch.cat(masks, dim=-1)})  # type: ignore[arg-type]

    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        del memo  # with one layer a stage, no two runs have a part in common
        x = state.hidden["joint"]
        module = self.skippable_layer(index).module_for(skipped)
        if skipped:
            return module(x[:, :1] if pooled_only else x)
        return module(x, state.attend["joint"], pooled_only)

    def pool(self, state: State) -> Tensor:
        """Return (batch, hidden_size) features of the text's first token."""
        return self.pool_joint(state.hidden["joint"])


def _sizes(shapes: Shapes, texts: str, positions: str, patches: str, blocks: str) -> dict[str, Any]:
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


FAMILY = Family(
    name="vilt",
    model=ViLT,
    config=ViLTConfig,
    formats=(VILT_FORMAT, TRANSFORMERS_FORMAT),
    derive=derive,
    head_fields={"num_heads": "hidden_size"},
    export=export,
)
