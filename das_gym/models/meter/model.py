"""METER as a model whose fusion layers can be skipped, and its checkpoints."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.models.adapters import skip_adapter
from das_gym.models.attention import fold_single_queries
from das_gym.models.base import VLP, Layer, Memo, Site, SkippableLayer, State, Stream, no_memo
from das_gym.models.checkpoints import FamilyModel
from das_gym.models.formats import (
    REFERENCE_RULES,
    ExportedHead,
    ExportedModel,
    Family,
    Format,
    Heads,
    Rules,
    Shapes,
    adapter_rules,
    adapter_widths,
    count_modules,
    derive_rank_output,
    derive_second_image,
    export_with_code,
    grid_side,
    module_rules,
)
from das_gym.models.inputs import Processor, find_tokenizer
from das_gym.models.meter.inputs import meter_transform
from das_gym.models.meter.network import SPARE_POSITIONS, FusionLayer, METERConfig, METERNetwork

MAX_TEXT_LENGTH = 50
"""Default length of texts in tokens. Source: METER's released scripts (VQA)."""

POSITIONS = "image_encoder.embeddings.position_embedding.weight"
FIRST_TOKEN = "first_text_token"

_CLIP = r"vit_model\.visual\."
_CLIP_BLOCK = rf"{_CLIP}transformer\.resblocks\.(\d+)\."
_OUR_CLIP_BLOCK = r"image_encoder.encoder.layers.\1."
_CLIP_PARTS = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1": "embeddings.patch_embedding",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
_CLIP_BLOCK_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}


class QuickGELU(nn.Module):
    """CLIP's activation, `x * sigmoid(1.702 * x)`, with the same bits as in transformers; overwrites `x`.

    On the CPU, blocks of rows stay small enough for the cache: these are the largest tensors of a forward.
    """

    rows_at_once = 64

    def forward(self, x: Tensor) -> Tensor:
        """Return `x * sigmoid(1.702 * x)`, in the memory of `x` unless it needs a gradient."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
            return x * torch.sigmoid(1.702 * x)
        x = x.contiguous()
        for rows in x.view(-1, x.shape[-1]).split(self.rows_at_once) if x.is_cpu else (x,):
            rows.mul_(rows.mul(1.702).sigmoid_())
        return x


class METER(METERNetwork, FamilyModel, VLP):  # type: ignore[override]
    """METER with parallel adapters in its fusion layers and a skip adapter for each.

    Layers 0-5 are the text fusion layers, 6-11 the image fusion layers. A batch holds
    `image` (batch, 3, image_size, image_size) float, `input_ids` (batch, tokens) int64 and
    `attention_mask` of the same shape, 1 = a real token. The default config is METER-base at 384 px.
    """

    tunable = ("adapter", "pooler", "token_types", "first_text_token")
    streams_apart = True

    def __init__(self, config: METERConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or METERConfig()
        self.feature_size = self.head_size = 2 * config.hidden_size
        self.layers = tuple(
            Layer(f"{stream}.{stage}", stream, stage, "fusion")
            for stream in ("text", "image")
            for stage in range(config.fusion_layers)
        )

        skip = partial(skip_adapter, config.hidden_size, config.skip_bottleneck)
        self.build_network(config, lambda index: SkippableLayer(FusionLayer(config), skip()))
        for layer in self.image_encoder.encoder.layers:
            layer.mlp.activation_fn = QuickGELU()
        fold_single_queries(self)
        # As in METER: N(0, 0.02), and 0 for biases. The encoders initialise themselves.
        for module in (self.text_transform, self.image_transform, self.text_layers, self.image_layers):
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    nn.init.normal_(part.weight, std=0.02)
                    nn.init.zeros_(part.bias)
        nn.init.normal_(self.token_types.weight, std=0.02)
        nn.init.normal_(self.first_text_token, std=0.02)

    def make_processor(self, folder: Path, max_text_length: int | None = None) -> Processor:
        """Return the processor for RoBERTa's tokens (padding has id 1) and METER's pixels; see `VLP.make_processor`."""
        tokenizer = find_tokenizer(folder, self.config.vocab_size, pad=1, first=0, last=2)
        longest = min(max_text_length or MAX_TEXT_LENGTH, self.config.max_positions - SPARE_POSITIONS)
        return Processor(tokenizer, meter_transform, self.config.image_size, self.config.patch_size, longest)

    def skippable_layer(self, index: int) -> SkippableLayer:
        layer = self.layers[index]
        return cast(SkippableLayer, (self.text_layers if layer.stream == "text" else self.image_layers)[layer.stage])

    def sites(self, index: int) -> tuple[Site, ...]:
        """Return the three sub-layers of a fusion layer; DAS inserts its adapters next to them."""
        layer: Any = self.skippable_layer(index).module_for(False)
        return (
            Site("attention", layer.self_attention, "out", ("query", "value"), partial(setattr, layer, "self_adapter")),
            Site("cross", layer.cross_attention, "out", ("query", "value"), partial(setattr, layer, "cross_adapter")),
            Site("mlp", layer, "feed_out", (), partial(setattr, layer, "feed_adapter")),
        )

    def text_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return outputs of the text encoder, before token types."""
        return self.encode_text(batch["input_ids"], batch["attention_mask"]), batch["attention_mask"][:, None, None].bool()

    def image_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return outputs of the image encoder, before token types."""
        return self.encode_image(batch["image"]), None

    def embed(self, encoded: State) -> State:
        image_types = encoded.extras.get("image_types", 1)
        text, image = self.embed_streams(encoded.hidden["text"], encoded.hidden["image"], image_types)
        return encoded.with_hidden({"text": text, "image": image})

    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        """Return new hidden vectors of the layer's stream; masks share what depends on one stream; see `VLP.run_layer`."""
        stream = self.layers[index].stream
        other = "image" if stream == "text" else "text"
        x = state.hidden[stream]
        module: Any = self.skippable_layer(index).module_for(skipped)

        def share(part: str, read: Tensor, compute: Callable[[], Any]) -> Any:
            return memo((index, part, id(read)), compute)

        if skipped:
            return share("skip", x, lambda: module(x[:, :1] if pooled_only else x))
        return module(x, state.hidden[other], state.attend[stream], state.attend[other], pooled_only, share)

    def pool(self, state: State) -> Tensor:
        return self.pool_streams(state.hidden["text"], state.hidden["image"])


def meter_sizes(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config fields from the shapes of an official METER checkpoint; ValueError if fusion layers are missing."""
    text = shapes["cross_modal_text_transform.weight"]
    patch = shapes["vit_model.visual.conv1.weight"][-1]
    layers = {stream: count_modules(shapes, f"cross_modal_{stream}_layers") for stream in ("text", "image")}
    if layers["text"] != layers["image"]:
        raise ValueError(f"incomplete checkpoint: {layers['text']} text and {layers['image']} image fusion layers")
    embeddings = "text_transformer.embeddings"
    return {
        "image_size": patch * grid_side(shapes["vit_model.visual.positional_embedding"][0]),
        "patch_size": patch,
        "hidden_size": text[0],
        "fusion_layers": layers["text"],
        "vision_width": shapes["cross_modal_image_transform.weight"][1],
        "vision_layers": count_modules(shapes, "vit_model.visual.transformer.resblocks"),
        "text_width": text[1],
        "text_layers": count_modules(shapes, "text_transformer.encoder.layer"),
        "vocab_size": shapes[f"{embeddings}.word_embeddings.weight"][0],
        "max_positions": shapes[f"{embeddings}.position_embeddings.weight"][0],
        **adapter_widths(
            shapes, "cross_modal_text_layers.0.adapter.down_proj.weight", "adapter_list_l.0.0.down_proj.weight"
        ),
    }


def _fusion_rules(stream: str, letter: str) -> Rules:
    theirs = rf"cross_modal_{stream}_layers\.(\d+)\."
    ours = rf"{stream}_layers.\1.layer."
    parts = {
        "attention.output.dense": "self_attention.out",
        "attention.output.LayerNorm": "self_norm",
        "crossattention.output.dense": "cross_attention.out",
        "crossattention.output.LayerNorm": "cross_norm",
        "intermediate.dense": "feed_in",
        "output.dense": "feed_out",
        "output.LayerNorm": "feed_norm",
    }
    for part in ("query", "key", "value"):
        parts |= {
            f"attention.self.{part}": f"self_attention.{part}",
            f"crossattention.self.{part}": f"cross_attention.{part}",
        }
    return (
        *module_rules(parts, theirs, ours),
        *adapter_rules(rf"{theirs}attention\.output\.adapter", f"{ours}self_adapter"),
        *adapter_rules(rf"{theirs}crossattention\.output\.adapter", f"{ours}cross_adapter"),
        *adapter_rules(rf"{theirs}adapter", f"{ours}feed_adapter"),
        *adapter_rules(rf"adapter_list_{letter}\.(\d+)\.0", rf"{stream}_layers.\1.skip_adapter"),
        *module_rules({f"cross_modal_{stream}_transform": f"{stream}_transform"}),
        *module_rules({f"cross_modal_{stream}_pooler.dense": f"{stream}_pooler"}),
    )


METER_FORMAT = Format(
    title="METER checkpoint",
    marks=("cross_modal_text_transform.weight", "vit_model.visual.conv1.weight"),
    rules=(
        (r"token4classifier", "first_text_token"),
        *REFERENCE_RULES,
        *_fusion_rules("text", "l"),
        *_fusion_rules("image", "v"),
        *module_rules(_CLIP_PARTS, _CLIP, "image_encoder."),
        *module_rules(_CLIP_BLOCK_PARTS, _CLIP_BLOCK, _OUR_CLIP_BLOCK),
        (
            rf"{_CLIP_BLOCK}attn\.in_proj_(weight|bias)",
            tuple(rf"{_OUR_CLIP_BLOCK}self_attn.{part}_proj.\2" for part in "qkv"),
        ),
        (r"vit_model\.(?:positional_embedding|ln_final\.(?:weight|bias))", None),
        (r"text_transformer\.(?:embeddings\.position_ids|pooler\.dense\.(?:weight|bias))", None),
        (r"text_transformer\.(embeddings\..+|encoder\.layer\..+)", r"text_encoder.\1"),
    ),
    sizes=meter_sizes,
)


def derive(named: dict[str, Tensor], heads: Heads, config: METERConfig) -> None:
    """Add tensors that METER's code derives from others."""
    derive_second_image(named)
    positions = named.get(POSITIONS)
    if positions is not None and positions.ndim == 2 and len(positions) != config.image_tokens:
        named[POSITIONS] = resize_positions(positions, config.image_size // config.patch_size)
    _derive_first_token(named, config)
    derive_rank_output(heads)


def _derive_first_token(named: dict[str, Tensor], config: METERConfig) -> None:
    """METER's first text token starts as the text encoder's embedding of the token 0 at the first position, 2."""
    prefix = "text_encoder.embeddings"
    parts = [f"{prefix}.{part}_embeddings.weight" for part in ("word", "position", "token_type")]
    norm = [f"{prefix}.LayerNorm.{part}" for part in ("weight", "bias")]
    fits = all(name in named and named[name].shape[-1:] == (config.hidden_size,) for name in parts + norm)
    if FIRST_TOKEN in named or not fits or config.max_positions < 3:
        return
    word, position, kind = (named[name] for name in parts)
    weight, bias = (named[name].float() for name in norm)
    start = (word[0] + position[2] + kind[0]).float()
    named[FIRST_TOKEN] = F.layer_norm(start, (config.hidden_size,), weight, bias, eps=1e-5)[None, None]


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Resize (1 + n ** 2, width) positions, the class token's first, to (1 + side ** 2, width), bicubically as in METER."""
    old = grid_side(len(positions))
    grid = positions[1:].float().T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat((positions[:1].float(), grid.flatten(2)[0].T))


def export(vlp: METER, head: ExportedHead) -> ExportedModel:
    """Return a pruned METER and its head in transformers' form."""
    code = ("modeling_meter_subnet", "network", "inputs")
    image_processor = {
        "image_processor_type": "MeterSubnetImageProcessor",
        "auto_map": {"AutoImageProcessor": "modeling_meter_subnet.MeterSubnetImageProcessor"},
        "size": vlp.config.image_size,
    }
    model = "das_gym.models.meter.modeling_meter_subnet:MeterSubnet"
    return export_with_code(vlp, head, model, tuple(f"das_gym.models.meter.{name}" for name in code), image_processor)


FAMILY = Family(
    name="meter",
    model=METER,
    config=METERConfig,
    formats=(METER_FORMAT,),
    derive=derive,
    head_fields={"num_heads": "hidden_size", "vision_heads": "vision_width", "text_heads": "text_width"},
    fixed_heads=("vision_heads",),
    export=export,
)
