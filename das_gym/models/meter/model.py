"""METER as a model whose fusion layers can be skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from das_gym.models.adapters import skip_adapter
from das_gym.models.attention import fold_single_queries
from das_gym.models.base import VLP, Layer, Memo, Site, SkippableLayer, State, Stream, no_memo
from das_gym.models.checkpoints import FamilyModel
from das_gym.models.inputs import Processor, find_tokenizer
from das_gym.models.meter.inputs import meter_transform
from das_gym.models.meter.network import SPARE_POSITIONS, FusionLayer, METERConfig, METERNetwork

MAX_TEXT_LENGTH = 50
"""Default length of texts in tokens. Source: METER's released scripts (VQA)."""


class QuickGELU(nn.Module):
    """CLIP's activation, `x * sigmoid(1.702 * x)`, with the same bits as in transformers; overwrites `x`.

    These are the largest tensors of a forward. On the CPU, intermediate results stay small enough for the cache: writing
    new tensors to memory and reading them again takes longer than the computation.
    """

    rows_at_once = 64

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
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
        """Return the module of layer `index`."""
        layer = self.layers[index]
        return cast(SkippableLayer, (self.text_layers if layer.stream == "text" else self.image_layers)[layer.stage])

    def sites(self, index: int) -> tuple[Site, ...]:
        """Return the three sub-layers of a fusion layer; DAS inserts its adapters next to them."""
        layer: Any = self.skippable_layer(index).module_for(False)
        beside = partial(partial, setattr, layer)
        return (
            Site("attention", layer.self_attention, "out", ("query", "value"), beside("self_adapter")),
            Site("cross", layer.cross_attention, "out", ("query", "value"), beside("cross_adapter")),
            Site("mlp", layer, "feed_out", (), beside("feed_adapter")),
        )

    def text_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return outputs of the text encoder, before token types."""
        return self.encode_text(batch["input_ids"], batch["attention_mask"]), batch["attention_mask"][:, None, None].bool()

    def image_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return outputs of the image encoder, before token types."""
        return self.encode_image(batch["image"]), None

    def embed(self, encoded: State) -> State:
        """Return the state before stage 0; see `VLP.embed`."""
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
        """Return (batch, 2 * hidden_size) features: text, then image."""
        return self.pool_streams(state.hidden["text"], state.hidden["image"])
