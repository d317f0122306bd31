"""ViLT's network: word and patch embeddings in one sequence, then twelve transformer blocks.

Exported folders carry a copy of this file, so it imports torch and the files next to it alone.

Source: ViLT (arXiv 2102.03334) with the adapters of DAS (arXiv 2309.01479).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.models.adapters import add_to, parallel_adapter
from das_gym.models.attention import Attention


@dataclass(frozen=True)
class ViLTConfig:
    """Sizes of a ViLT model. Widths are in units, sizes in pixels, lengths in tokens.

    Attributes:
        image_size: Shorter side of the images it is used with; a multiple of `patch_size`.
        position_grid: Patches a side of the stored position embeddings; None = those of a square image of `image_size`.
        hidden_size, num_heads, num_layers: The blocks.
        vocab_size, max_positions: Tokens of the text embeddings, and of the longest text.
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

    @property
    def grid(self) -> int:
        """Patches a side of the stored position embeddings."""
        return self.position_grid or self.image_size // self.patch_size

    @property
    def image_tokens(self) -> int:
        """Patches of a square image and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class ViLTBlock(nn.Module):
    """Self-attention, then a multi-layer perceptron; pre-LayerNorm. A parallel adapter reads what each LayerNorm reads."""

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
        """Return new (batch, tokens, hidden_size); with `pooled_only` of the first token alone."""
        normed = self.attention_norm(x)
        if pooled_only:
            mixed = self.attention.forward_pooled(normed[:, :1], normed, attend)
            x = x[:, :1]
        else:
            mixed = self.attention(normed, self.attention.keys_values(normed), attend)
        x = add_to(self.dropout(mixed), x, self.attention_adapter(x))
        update = self.mlp_out(self.dropout(F.gelu(self.mlp_in(self.mlp_norm(x)))))
        return add_to(self.dropout(update), x, self.mlp_adapter(x))


def _first(counts: Tensor, places: int) -> Tensor:
    return torch.arange(places, device=counts.device) < counts[:, None]


def _stretch(counts: Tensor, places: int, points: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Find where places along a side lie between stored points, the first on the first, and the last on the last.

    Of each image (batch,) `counts` places are used; what the others get has no meaning. Returns the points before and after
    each place, (batch, places) int64, and how far it is from the first to the second, 0..1, of `dtype`.
    """
    last = (counts[:, None] - 1).clamp(min=1)
    reached = torch.arange(places, device=counts.device) * (points - 1)
    low = (reached // last).clamp(max=points - 1)
    return low, (low + 1).clamp(max=points - 1), (reached % last).to(dtype) / last.to(dtype)


class ViLTNetwork(nn.Module):
    """The parts of ViLT, without the decision which blocks run."""

    def build_network(self, config: ViLTConfig, make_layer: Callable[[int], nn.Module]) -> None:
        """Create all modules; `make_layer` makes a block from its index."""
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.text_positions = nn.Embedding(config.max_positions, size)
        self.text_token_types = nn.Embedding(2, size)
        self.text_norm = nn.LayerNorm(size, eps=config.text_norm_eps)
        self.patch_embedding = nn.Conv2d(3, size, config.patch_size, config.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size))
        self.image_positions = nn.Parameter(torch.zeros(1, config.grid**2 + 1, size))
        self.token_types = nn.Embedding(3, size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(make_layer(index) for index in range(config.num_layers))
        self.final_norm = nn.LayerNorm(size, eps=config.norm_eps)
        self.pooler = nn.Linear(size, size)

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """Return (batch, tokens, hidden_size), before token types and the LayerNorm; ValueError for too many tokens."""
        length = input_ids.shape[1]
        longest = self.text_positions.num_embeddings
        if length > longest:
            raise ValueError(f"text too long: got `input_ids` of {length} tokens, expected at most {longest}. Truncate it")
        return self.word_embeddings(input_ids) + self.text_positions.weight[:length]

    def embed_image(self, image: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return class token and patches with positions, seen patches first, in raster order; ValueError for partial ones.

        Args:
            image: (batch, 3, height, width) float.
            real: (batch, height, width), 0 = padding at the right and bottom; None = where all channels are 0.

        Returns:
            (batch, 1 + n, hidden_size) and (batch, 1 + n) bool, True = seen; n is the most patches of any image.
        """
        side = self.patch_embedding.stride[0]
        if image.ndim != 4 or image.shape[-1] % side or image.shape[-2] % side:
            shape = tuple(image.shape)
            raise ValueError(f"invalid image: got shape {shape}, expected sides in multiples of {side}. Pad with zeros")
        # A patch counts as seen by its first pixel alone, as in the reference; transforms give no real pixel the sum 0.
        seen = (image[:, :, ::side, ::side].sum(1) if real is None else real[:, ::side, ::side]) != 0
        patches = (self.patch_embedding(image) + self._positions(seen)).flatten(2).mT
        patches, seen = self._seen_first(patches, seen.flatten(1))
        first = (self.class_token + self.image_positions[:, :1]).expand(image.shape[0], -1, -1)
        return torch.cat((first, patches), dim=1), F.pad(seen, (1, 0), value=True)

    @staticmethod
    def _seen_first(patches: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Move seen patches to the front, and drop all but as many as the image with the most has.

        A graph for other images must not depend on that number: there all patches stay, and attention masks the unseen ones.
        """
        if seen.is_meta or torch.compiler.is_compiling() or bool(seen.all()):
            return patches, seen
        count = int(seen.sum(1).max())
        order = (~seen).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
        return patches.take_along_dim(order[..., None], dim=1), seen.take_along_dim(order, dim=1)

    def _positions(self, seen: Tensor) -> Tensor:
        """Return (batch, hidden_size, rows, columns): each image's own grid of positions, zero outside."""
        side = math.isqrt(self.image_positions.shape[1] - 1)
        grid = self.image_positions[0, 1:].unflatten(0, (side, side))
        # Padding lies at the right and bottom, so that the first row and column tell how much of the image is seen.
        height, width = (edge.sum(1).clamp(min=1) for edge in (seen[:, :, 0], seen[:, 0]))
        low, high, part = _stretch(height, seen.shape[1], side, grid.dtype)
        rows = torch.lerp(grid[low], grid[high], part[:, :, None, None])
        low, high, part = (t[:, None, :, None] for t in _stretch(width, seen.shape[2], side, grid.dtype))
        low, high = (index.expand(-1, rows.shape[1], -1, rows.shape[3]) for index in (low, high))
        stretched = torch.lerp(rows.gather(2, low), rows.gather(2, high), part)
        inside = _first(height, seen.shape[1])[:, :, None] & _first(width, seen.shape[2])[:, None]
        return torch.where(inside[..., None], stretched, 0.0).permute(0, 3, 1, 2)

    def join_streams(self, text: Tensor, image: Tensor, image_types: Tensor | int) -> Tensor:
        """Return text and image with token types as one sequence; `image_types` are one number, or (batch,) int64."""
        types = self.token_types.weight
        text = self.dropout(self.text_norm(text + self.text_token_types.weight[0]))
        image_type = types[image_types] if isinstance(image_types, int) else types[image_types, None]
        return torch.cat((text + types[0], self.dropout(image) + image_type), dim=1)

    def pool_joint(self, joint: Tensor) -> Tensor:
        """Return (batch, hidden_size) features of the text's first token."""
        return torch.tanh(self.pooler(self.final_norm(joint[:, 0])))
