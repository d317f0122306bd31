"""ViLT: word and patch embeddings in one sequence, then twelve transformer blocks.

Source: ViLT (arXiv 2102.03334) with the adapters of DAS (arXiv 2309.01479).
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
from das_gym.models.sizes import check_patches, check_sizes
from das_gym.models.vilt.inputs import vilt_transform

USUAL_TEXT = 40
"""Longest text in tokens, unless told otherwise. Source: ViLT's released scripts."""


@dataclass(frozen=True)
class ViLTConfig:
    """Sizes of a ViLT model. Widths are in units, sizes in pixels, lengths in tokens.

    Attributes:
        image_size: Shorter side of the images it is used with; a multiple of `patch_size`.
        patch_size: Side of a patch.
        position_grid: Patches a side of the stored position embeddings; None = those of a square image of `image_size`.
        hidden_size: Width of the blocks.
        num_heads: Attention heads of the blocks.
        num_layers: Blocks.
        vocab_size: Tokens of the text embeddings.
        max_positions: Longest text.
        bottleneck: Width of the parallel adapters; 0 leaves them out.
        skip_bottleneck: Width of the skip adapters; 0 passes the input of a skipped layer on.
        norm_eps: Epsilon of the blocks' LayerNorms (1e-6; models saved by transformers say 1e-12).
        text_norm_eps: Epsilon of the text embeddings' LayerNorm.
        dropout: Dropout of embeddings and sub-layers, 0..1; acts in train mode only.
    """

    image_size: int = 384
    patch_size: int = 32
    position_grid: int | None = None
    hidden_size: int = 768
    num_heads: int = 12
    num_layers: int = 12
    vocab_size: int = 30522
    max_positions: int = 40
    bottleneck: int = 96
    skip_bottleneck: int = 192
    norm_eps: float = 1e-6
    text_norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, may_be_zero=("bottleneck", "skip_bottleneck"), may_be_none=("position_grid",))
        check_patches(self.image_size, self.patch_size)
        if self.hidden_size % self.num_heads:
            heads = self.num_heads
            raise ValueError(f"hidden_size={self.hidden_size} cannot be split over {heads} heads; use a multiple of {heads}")

    @property
    def grid(self) -> int:
        """Patches a side of the stored position embeddings."""
        return self.position_grid or self.image_size // self.patch_size

    @property
    def image_tokens(self) -> int:
        """Patches of a square image and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class ViLTBlock(nn.Module):
    """Self-attention, then a multi-layer perceptron; pre-LayerNorm.

    A parallel adapter sits beside each; both adapters read the hidden vectors before the LayerNorm.
    """

    def __init__(self, config: ViLTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention_norm = nn.LayerNorm(size, eps=config.norm_eps)
        self.attention = Attention(size, config.num_heads, dropout=0.0)
        self.attention_adapter = parallel_adapter(size, config.bottleneck)
        self.mlp_norm = nn.LayerNorm(size, eps=config.norm_eps)
        self.mlp_in = nn.Linear(size, 4 * size)
        self.mlp_out = nn.Linear(4 * size, size)
        self.mlp_adapter = parallel_adapter(size, config.bottleneck)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, attend: Tensor | None, pooled_only: bool = False) -> Tensor:
        """New hidden vectors; with `pooled_only` those of the first token alone."""
        normed = self.attention_norm(x)
        if pooled_only:
            mixed, x = self.attention.pooled(normed[:, :1], normed, attend), x[:, :1]
        else:
            mixed = self.attention(normed, self.attention.keys_values(normed), attend)
        x = add_to(self.dropout(mixed), x, self.attention_adapter(x))
        update = self.mlp_out(self.dropout(F.gelu(self.mlp_in(self.mlp_norm(x)))))
        return add_to(self.dropout(update), x, self.mlp_adapter(x))


def _first(counts: Tensor, places: int) -> Tensor:
    """(batch, places) bool, True for the first `counts` (batch,) int64 of each row."""
    return torch.arange(places, device=counts.device) < counts[:, None]


def _stretch(counts: Tensor, places: int, points: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Where places along a side lie between stored points, the first on the first, and the last on the last.

    Args:
        counts: (batch,) int64, 1 or more: how many places are used; what the others get has no meaning.
        places: How many there are.
        points: How many points are stored.
        dtype: Of the third result.

    Returns:
        The point before and the point behind each place, (batch, places) int64, and how far it is from the first to the
        second, 0..1, of `dtype`.
    """
    last = (counts[:, None] - 1).clamp(min=1)
    reached = torch.arange(places, device=counts.device) * (points - 1)
    low = (reached // last).clamp(max=points - 1)
    return low, (low + 1).clamp(max=points - 1), (reached % last).to(dtype) / last.to(dtype)


class ViLT(Pretrained, VLP):
    """ViLT with parallel adapters in its blocks and a skip adapter for each.

    Layers 0-11 are the blocks. A batch holds `image` (batch, 3, height, width) float, both sides multiples
    of the patch size, `input_ids` (batch, tokens) int64 and `attention_mask` of the same shape, 1 = a real token.
    Images of different sizes share a batch padded with zeros at their right and bottom: a patch whose top-left
    pixel is zero in sum is not seen, and position embeddings are stretched over what is left of each image. So
    an example's features depend on nothing else in its batch. Patches keep their order and none is dropped,
    where the reference shuffles them.

    Args:
        config: Sizes; the default is ViLT-B/32 at 384 px.
    """

    tunable = ("adapter", "pooler", "token_types")

    def __init__(self, config: ViLTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ViLTConfig()
        size = self.feature_size = config.hidden_size
        self.head_size = 2 * size
        self.layers = tuple(Layer(f"block.{i}", "joint", i, "block") for i in range(config.num_layers))
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.text_positions = nn.Embedding(config.max_positions, size)
        self.text_token_types = nn.Embedding(2, size)
        self.text_norm = nn.LayerNorm(size, eps=config.text_norm_eps)
        self.patch_embedding = nn.Conv2d(3, size, config.patch_size, config.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, size))
        self.image_positions = nn.Parameter(torch.empty(1, config.grid**2 + 1, size))
        self.token_types = nn.Embedding(3, size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            SkippableLayer(ViLTBlock(config), skip_adapter(size, config.skip_bottleneck)) for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(size, eps=config.norm_eps)
        self.pooler = nn.Linear(size, size)
        self._init_weights()

    def _init_weights(self) -> None:
        """Weights N(0, 0.02) and biases 0, as in ViLT; LayerNorms start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.image_positions, std=0.02)

    @property
    def size(self) -> str:  # type: ignore[override]
        """`base` by the width of the blocks, else `mini`."""
        return "base" if self.config.hidden_size == ViLTConfig.hidden_size else "mini"

    def inputs(self, folder: Path, max_text_length: int | None = None) -> Processor:
        """BERT's tokens, whose padding has id 0, and ViLT's pixels; see `VLP.inputs`."""
        config = self.config
        tokenizer = find_tokenizer(folder, config.vocab_size, pad=0)
        longest = min(max_text_length or USUAL_TEXT, config.max_positions)
        return Processor(tokenizer, vilt_transform, config.image_size, config.patch_size, longest)

    def skippable(self, index: int) -> SkippableLayer:
        """The module of block `index`."""
        return cast(SkippableLayer, self.blocks[index])

    def sites(self, index: int) -> tuple[Site, ...]:
        """Attention and multi-layer perceptron of a block; beside them is where DAS puts its adapters."""
        block: Any = self.skippable(index).chosen(False)
        beside = partial(partial, setattr, block)
        return (
            Site("attention", block.attention, "out", ("query", "value"), beside("attention_adapter")),
            Site("mlp", block, "mlp_out", (), beside("mlp_adapter")),
        )

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """(batch, tokens, hidden_size): words and positions, before token types and the LayerNorm.

        Raises:
            ValueError: the text is longer than the model has positions.
        """
        length, longest = input_ids.shape[1], self.config.max_positions
        if length > longest:
            raise ValueError(f"input_ids of {length} tokens: this ViLT has {longest} text positions; shorten the text")
        return self.word_embeddings(input_ids) + self.text_positions.weight[:length]

    def embed_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class token and patches with their positions, seen patches first, each in raster order.

        Args:
            image: (batch, 3, height, width) float; zeros at the right and bottom are padding.

        Returns:
            (batch, 1 + n, hidden_size) and (batch, 1 + n) bool, True = seen; n is the most patches of any image.

        Raises:
            ValueError: a side is not a multiple of the patch size.
        """
        side = self.config.patch_size
        if image.ndim != 4 or image.shape[-1] % side or image.shape[-2] % side:
            raise ValueError(f"image of shape {tuple(image.shape)}: both sides must be multiples of {side}; pad with zeros")
        seen = image[:, :, ::side, ::side].sum(1) != 0
        patches = (self.patch_embedding(image) + self._positions(seen)).flatten(2).mT
        patches, seen = self._seen_first(patches, seen.flatten(1))
        first = (self.class_token + self.image_positions[:, :1]).expand(image.shape[0], -1, -1)
        always = seen.new_ones(image.shape[0], 1)
        return torch.cat((first, patches), dim=1), torch.cat((always, seen), dim=1)

    @staticmethod
    def _seen_first(patches: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Seen patches in front, and as many as the image with the most has.

        How many that is depends on what the images hold. Where that is not to be known, as in a graph for images to come,
        all patches stay in their places: what is not seen is not attended to.
        """
        if seen.is_meta or torch.compiler.is_compiling() or bool(seen.all()):
            return patches, seen
        most = int(seen.sum(1).max())
        order = (~seen).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        return patches.take_along_dim(order[..., None], dim=1), seen.take_along_dim(order, dim=1)

    def _positions(self, seen: Tensor) -> Tensor:
        """(batch, hidden_size, rows, columns): each image's own grid of positions, zero outside.

        The stored grid is stretched over the rows and columns that are seen, bilinearly, corner on corner.
        """
        side = self.config.grid
        grid = self.image_positions[0, 1:].unflatten(0, (side, side))
        height, width = (edge.sum(1).clamp(min=1) for edge in (seen[:, :, 0], seen[:, 0]))
        low, high, part = _stretch(height, seen.shape[1], side, grid.dtype)
        rows = torch.lerp(grid[low], grid[high], part[:, :, None, None])
        low, high, part = (t[:, None, :, None] for t in _stretch(width, seen.shape[2], side, grid.dtype))
        low, high = (index.expand(-1, rows.shape[1], -1, rows.shape[3]) for index in (low, high))
        whole = torch.lerp(rows.gather(2, low), rows.gather(2, high), part)
        inside = _first(height, seen.shape[1])[:, :, None] & _first(width, seen.shape[2])[:, None]
        return torch.where(inside[..., None], whole, 0.0).permute(0, 3, 1, 2)

    def text_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Word embeddings with positions, before token types and the text's LayerNorm (its input trains)."""
        return self.embed_text(batch["input_ids"]), batch["attention_mask"][:, None, None].bool()

    def image_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Patch embeddings with positions, before token types."""
        image, seen = self.embed_image(batch["image"])
        return image, seen[:, None, None]

    def embed(self, encoded: State) -> State:
        """Adds token types and joins text and image."""
        types, image_types = self.token_types.weight, encoded.extras.get("image_types")
        text = self.dropout(self.text_norm(encoded.hidden["text"] + self.text_token_types.weight[0]))
        image = self.dropout(encoded.hidden["image"])
        image_types = types[1] if image_types is None else types[image_types, None]
        joint = torch.cat((text + types[0], image + image_types), dim=1)
        return State(hidden={"joint": joint}, attend={"joint": self._join_attend(encoded)})

    @staticmethod
    def _join_attend(encoded: State) -> Tensor | None:
        """(batch, 1, 1, tokens) bool of text and image together, or None if every token of both is real."""
        masks = [encoded.attend["text"], encoded.attend["image"]]
        if all(mask is None for mask in masks):
            return None
        lengths = [encoded.hidden[stream].shape[:2] for stream in ("text", "image")]
        device = encoded.hidden["image"].device
        full = [torch.ones(batch, 1, 1, n, dtype=torch.bool, device=device) for batch, n in lengths]
        return torch.cat([every if mask is None else mask for mask, every in zip(masks, full, strict=True)], dim=-1)

    def alike(self, index: int) -> Hashable:
        """As `VLP.alike`: blocks that are built the same."""
        return structure(self.skippable(index))

    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        """New hidden vectors of the joint stream; see `VLP.run_layer`."""
        del memo  # one layer a stage: there is nothing to share
        x = state.hidden["joint"]
        module = self.skippable(index).chosen(skipped)
        if skipped:
            return module(x[:, :1] if pooled_only else x)
        return module(x, state.attend["joint"], pooled_only)

    def pool(self, state: State) -> Tensor:
        """(batch, hidden_size), read at the text's first token."""
        return torch.tanh(self.pooler(self.final_norm(state.hidden["joint"][:, 0])))
