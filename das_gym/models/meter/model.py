"""METER: CLIP-ViT and RoBERTa encoders, then six text and six image fusion layers side by side.

Source: METER (arXiv 2111.02387) with the adapters of DAS (arXiv 2309.01479).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.models.adapters import add_to, parallel_adapter, skip_adapter
from das_gym.models.attention import Attention
from das_gym.models.base import VLP, Layer, Memo, Site, SkippableLayer, State, Stream, no_memo
from das_gym.models.checkpoints import Pretrained
from das_gym.models.inputs import Processor, find_tokenizer
from das_gym.models.macs import structure
from das_gym.models.meter.inputs import meter_transform
from das_gym.models.sizes import check_patches, check_sizes

SPARE_POSITIONS = 2
"""Text positions that no token uses: RoBERTa counts from 2 on."""

USUAL_TEXT = 50
"""Longest text in tokens, unless told otherwise. Source: METER's released scripts (VQA)."""


@dataclass(frozen=True)
class METERConfig:
    """Sizes of a METER model. Widths are in units, sizes in pixels, lengths in tokens.

    Attributes:
        image_size: Side of the square image; a multiple of `patch_size`.
        patch_size: Side of a patch.
        hidden_size: Width of the fusion layers.
        num_heads: Attention heads of the fusion layers.
        fusion_layers: Fusion layers of each stream.
        vision_width, vision_layers, vision_heads: The CLIP-ViT encoder.
        text_width, text_layers, text_heads: The RoBERTa encoder.
        vocab_size: Tokens of the text encoder.
        max_positions: Position embeddings of the text encoder, two more than its longest text.
        bottleneck: Width of the parallel adapters; 0 builds none, as for pre-training.
        skip_bottleneck: Width of the skip adapters; 0 passes the input of a skipped layer on.
        dropout: Dropout of encoders and fusion layers, 0..1; acts in train mode only.
    """

    image_size: int = 384
    patch_size: int = 16
    hidden_size: int = 768
    num_heads: int = 12
    fusion_layers: int = 6
    vision_width: int = 768
    vision_layers: int = 11
    vision_heads: int = 12
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vocab_size: int = 50265
    max_positions: int = 514
    bottleneck: int = 96
    skip_bottleneck: int = 288
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, may_be_zero=("bottleneck", "skip_bottleneck"))
        check_patches(self.image_size, self.patch_size)
        for name, width, heads in (
            ("hidden_size", self.hidden_size, self.num_heads),
            ("vision_width", self.vision_width, self.vision_heads),
            ("text_width", self.text_width, self.text_heads),
        ):
            if width % heads:
                raise ValueError(f"{name}={width} cannot be split over {heads} heads; use a multiple of {heads}")

    @property
    def image_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class QuickGELU(nn.Module):
    """CLIP's activation, `x * sigmoid(1.702 * x)`, to the bit as in transformers; overwrites `x`, see `gelu`.

    These are the largest tensors of a forward. On the CPU what is computed on the way stays small enough for the cache: to
    write whole new tensors to memory and read them again takes longer than to compute them.
    """

    rows_at_once = 64

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
            return x * torch.sigmoid(1.702 * x)
        x = x.contiguous()
        for rows in x.view(-1, x.shape[-1]).split(self.rows_at_once) if x.is_cpu else (x,):
            rows.mul_(rows.mul(1.702).sigmoid_())
        return x


def gelu(x: Tensor) -> Tensor:
    """GELU of a tensor that nobody else reads: where nothing trains, it is overwritten."""
    return F.gelu(x) if torch.is_grad_enabled() and x.requires_grad else torch.ops.aten.gelu_(x)


class FusionLayer(nn.Module):
    """Self-attention, cross-attention to the other stream, feed-forward; post-LayerNorm.

    A parallel adapter sits beside each sub-layer. The two of attention are added before the
    LayerNorm, that of the feed-forward after it, as in the code of DAS.
    """

    norm_eps = 1e-12

    def __init__(self, config: METERConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.self_attention = Attention(size, config.num_heads, config.dropout)
        self.self_norm = nn.LayerNorm(size, eps=self.norm_eps)
        self.self_adapter = parallel_adapter(size, config.bottleneck)
        self.cross_attention = Attention(size, config.num_heads, config.dropout)
        self.cross_norm = nn.LayerNorm(size, eps=self.norm_eps)
        self.cross_adapter = parallel_adapter(size, config.bottleneck)
        self.feed_in = nn.Linear(size, 4 * size)
        self.feed_out = nn.Linear(4 * size, size)
        self.feed_norm = nn.LayerNorm(size, eps=self.norm_eps)
        self.feed_adapter = parallel_adapter(size, config.bottleneck)
        self.dropout = nn.Dropout(config.dropout)

    def attend_self(self, x: Tensor, attend: Tensor | None, pooled_only: bool = False) -> Tensor:
        """The first sub-layer: reads this stream alone."""
        if pooled_only:
            mixed, x = self.self_attention.pooled(x[:, :1], x, attend), x[:, :1]
        else:
            mixed = self.self_attention(x, self.self_attention.keys_values(x), attend)
        return self.self_norm(add_to(self.dropout(mixed), x, self.self_adapter(x)))

    def attend_cross(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The second sub-layer, from what its attention mixed of the other stream."""
        return self.cross_norm(add_to(self.dropout(mixed), x, self.cross_adapter(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The third sub-layer."""
        update = self.dropout(self.feed_out(gelu(self.feed_in(x))))
        return add_to(self.feed_norm(add_to(update, x)), self.feed_adapter(x))


class METER(Pretrained, VLP):
    """METER with parallel adapters in its fusion layers and a skip adapter for each.

    Layers 0-5 are the text fusion layers, 6-11 the image fusion layers. A batch holds
    `image` (batch, 3, image_size, image_size) float, `input_ids` (batch, tokens) int64 and
    `attention_mask` of the same shape, 1 = a real token.

    Args:
        config: Sizes; the default is METER-base at 384 px.
    """

    tunable = ("adapter", "pooler", "token_types", "first_text_token")
    streams_apart = True

    def __init__(self, config: METERConfig | None = None) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel

        self.config = config = config or METERConfig()
        self.feature_size = self.head_size = 2 * config.hidden_size
        self.layers = tuple(
            Layer(f"{stream}.{stage}", stream, stage, "fusion")
            for stream in ("text", "image")
            for stage in range(config.fusion_layers)
        )
        self.image_encoder = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.vision_width,
                intermediate_size=4 * config.vision_width,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.vision_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act="quick_gelu",
                layer_norm_eps=1e-5,
                attn_implementation="sdpa",
            )
        )
        for layer in self.image_encoder.encoder.layers:
            layer.mlp.activation_fn = QuickGELU()
        self.text_encoder = RobertaModel(
            RobertaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.text_width,
                intermediate_size=4 * config.text_width,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                max_position_embeddings=config.max_positions,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                attn_implementation="sdpa",
            ),
            add_pooling_layer=False,
        )
        size = config.hidden_size
        self.text_transform = nn.Linear(config.text_width, size)
        self.image_transform = nn.Linear(config.vision_width, size)
        self.first_text_token = nn.Parameter(torch.zeros(1, 1, size))
        self.token_types = nn.Embedding(3, size)
        self.text_layers = self._fusion_layers()
        self.image_layers = self._fusion_layers()
        self.text_pooler = nn.Linear(size, size)
        self.image_pooler = nn.Linear(size, size)
        self._init_own_weights()

    @property
    def size(self) -> str:  # type: ignore[override]
        """`base` by the width of the fusion layers, else `mini`."""
        return "base" if self.config.hidden_size == METERConfig.hidden_size else "mini"

    def inputs(self, folder: Path, max_text_length: int | None = None) -> Processor:
        """RoBERTa's tokens, in whose positions padding has id 1, and METER's pixels; see `VLP.inputs`."""
        config = self.config
        tokenizer = find_tokenizer(folder, config.vocab_size, pad=1, first=0, last=2)
        longest = min(max_text_length or USUAL_TEXT, config.max_positions - SPARE_POSITIONS)
        return Processor(tokenizer, meter_transform, config.image_size, config.patch_size, longest)

    def _fusion_layers(self) -> nn.ModuleList:
        size, bottleneck = self.config.hidden_size, self.config.skip_bottleneck
        return nn.ModuleList(
            SkippableLayer(FusionLayer(self.config), skip_adapter(size, bottleneck))
            for _ in range(self.config.fusion_layers)
        )

    def _init_own_weights(self) -> None:
        """Linear layers N(0, 0.02) and biases 0, as in METER; the encoders initialise themselves."""
        for module in (self.text_transform, self.image_transform, self.text_layers, self.image_layers):
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    nn.init.normal_(part.weight, std=0.02)
                    nn.init.zeros_(part.bias)
        nn.init.normal_(self.token_types.weight, std=0.02)
        nn.init.normal_(self.first_text_token, std=0.02)

    def skippable(self, index: int) -> SkippableLayer:
        """The module of layer `index`."""
        layer = self.layers[index]
        return cast(SkippableLayer, (self.text_layers if layer.stream == "text" else self.image_layers)[layer.stage])

    def sites(self, index: int) -> tuple[Site, ...]:
        """Self-attention, cross-attention and feed-forward of a fusion layer; beside them is where DAS puts its adapters."""
        layer: Any = self.skippable(index).chosen(False)
        beside = partial(partial, setattr, layer)
        return (
            Site("attention", layer.self_attention, "out", ("query", "value"), beside("self_adapter")),
            Site("cross", layer.cross_attention, "out", ("query", "value"), beside("cross_adapter")),
            Site("mlp", layer, "feed_out", (), beside("feed_adapter")),
        )

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens, hidden_size), before type embeddings.

        Raises:
            ValueError: the text is longer than the model has positions.
        """
        length, longest = input_ids.shape[1], self.config.max_positions - SPARE_POSITIONS
        if length > longest:
            raise ValueError(f"input_ids of {length} tokens: this METER has {longest} text positions; shorten the text")
        real = None if attention_mask.is_meta else attention_mask  # transformers looks into masks
        hidden = self.text_encoder(input_ids, attention_mask=real).last_hidden_state
        return self.text_transform(hidden)

    def encode_image(self, image: Tensor) -> Tensor:
        """(batch, patches + 1, hidden_size), before type embeddings."""
        hidden = self.image_encoder(image).last_hidden_state
        return self.image_transform(self.image_encoder.post_layernorm(hidden))

    def text_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Outputs of the text encoder, before token types."""
        attention_mask = batch["attention_mask"]
        return self.encode_text(batch["input_ids"], attention_mask), attention_mask[:, None, None].bool()

    def image_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Outputs of the image encoder, before token types."""
        return self.encode_image(batch["image"]), None

    def embed(self, encoded: State) -> State:
        """Puts in the first text token and adds token types."""
        text, image = encoded.hidden["text"], encoded.hidden["image"]
        place = torch.arange(text.shape[1], device=text.device)[:, None]
        text = torch.where(place == 0, self.first_text_token, text)
        types, image_types = self.token_types.weight, encoded.extras.get("image_types")
        image_types = types[1] if image_types is None else types[image_types, None]
        return encoded.with_hidden({"text": text + types[0], "image": image + image_types})

    def alike(self, index: int) -> Hashable:
        """As `VLP.alike`: layers of one stream that are built the same."""
        return self.layers[index].stream, structure(self.skippable(index))

    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        """New hidden vectors of the layer's stream; see `VLP.run_layer`."""
        stream = self.layers[index].stream
        other = "image" if stream == "text" else "text"
        x, y = state.hidden[stream], state.hidden[other]
        module: Any = self.skippable(index).chosen(skipped)
        if skipped:
            return memo((index, "skip", id(x)), lambda: module(x[:, :1] if pooled_only else x))
        hidden = memo((index, "self", id(x)), lambda: module.attend_self(x, state.attend[stream], pooled_only))
        if pooled_only:
            mixed = module.cross_attention.pooled(hidden, y, state.attend[other])
        else:
            keys_values = memo((index, "cross", id(y)), lambda: module.cross_attention.keys_values(y))
            mixed = module.cross_attention(hidden, keys_values, state.attend[other])
        return module.feed_forward(module.attend_cross(hidden, mixed))

    def pool(self, state: State) -> Tensor:
        """(batch, 2 * hidden_size): text, then image."""
        text = torch.tanh(self.text_pooler(state.hidden["text"][:, 0]))
        image = torch.tanh(self.image_pooler(state.hidden["image"][:, 0]))
        return torch.cat((text, image), dim=-1)
