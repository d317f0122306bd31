"""ViLT as a model whose blocks can be skipped."""

from __future__ import annotations

from collections.abc import Mapping
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
from das_gym.models.vilt.inputs import vilt_transform
from das_gym.models.vilt.network import ViLTBlock, ViLTConfig, ViLTNetwork

MAX_TEXT_LENGTH = 40
"""Default length of texts in tokens. Source: ViLT's released scripts."""


class ViLT(ViLTNetwork, FamilyModel, VLP):  # type: ignore[override]
    """ViLT with parallel adapters in its blocks and a skip adapter for each.

    Layers 0-11 are the blocks. A batch holds `image` (batch, 3, height, width) float, both sides multiples
    of the patch size, `input_ids` (batch, tokens) int64 and `attention_mask` of the same shape, 1 = a real token.
    Images of different sizes share a batch padded with zeros at their right and bottom: a patch whose top-left
    pixel is zero in sum is not seen, and position embeddings are stretched over the rest of each image. So
    an example's features depend on nothing else in its batch. Patches keep their order and none is dropped,
    where the reference shuffles them. The default config is ViLT-B/32 at 384 px.
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
        """Return the module of block `index`."""
        return cast(SkippableLayer, self.blocks[index])

    def sites(self, index: int) -> tuple[Site, ...]:
        """Return attention and multi-layer perceptron of a block; DAS inserts its adapters next to them."""
        block: Any = self.skippable_layer(index).module_for(False)
        beside = partial(partial, setattr, block)
        return (
            Site("attention", block.attention, "out", ("query", "value"), beside("attention_adapter")),
            Site("mlp", block, "mlp_out", (), beside("mlp_adapter")),
        )

    def text_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return word embeddings with positions, before token types and the text's LayerNorm (its input trains)."""
        return self.embed_text(batch["input_ids"]), batch["attention_mask"][:, None, None].bool()

    def image_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return patch embeddings with positions, before token types."""
        image, seen = self.embed_image(batch["image"])
        return image, seen[:, None, None]

    def embed(self, encoded: State) -> State:
        """Return the state before stage 0; see `VLP.embed`."""
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
        """Return new hidden vectors of the joint stream; see `VLP.run_layer`."""
        del memo  # with one layer a stage, no two runs have a part in common
        x = state.hidden["joint"]
        module = self.skippable_layer(index).module_for(skipped)
        if skipped:
            return module(x[:, :1] if pooled_only else x)
        return module(x, state.attend["joint"], pooled_only)

    def pool(self, state: State) -> Tensor:
        """Return (batch, hidden_size) features of the text's first token."""
        return self.pool_joint(state.hidden["joint"])
