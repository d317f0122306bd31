"""ViLT without the blocks that its task does not need: configuration and model.

This file needs torch and transformers alone, and lies beside the weights it was written for:

    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    batch = processor(pictures, ["what is left of the cube?"], padding=True, truncation=True, return_tensors="pt")
    logits = model(**batch).logits

Source: ViLT (arXiv 2102.03334) under DAS (arXiv 2309.01479): words and patches in one sequence through blocks of
self-attention and MLP. A skipped block's place is taken by a bottleneck adapter, or by nothing; beside attention and MLP of
the others there may be adapters, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class ViltSubnetConfig(PreTrainedConfig):
    """Sizes of the model, and which blocks are left.

    Args:
        hidden_size: Width of the blocks.
        num_attention_heads: Their attention heads.
        blocks: What stands in each place: `layer`, `adapter` or `nothing`.
        vocab_size: Tokens of the text embeddings.
        max_position_embeddings: Longest text in tokens.
        patch_size: Side of a patch, pixels.
        position_grid: Patches a side of the stored position embeddings.
        bottleneck: Width of the adapters beside the sub-layers of a block; 0 = there are none.
        skip_bottleneck: Width of the adapters that stand in for a block.
        num_images: Images that an example has; the head reads the features of all, side by side.
        head_width: Width inside the head; None = one linear layer.
        hidden_dropout_prob: Dropout of embeddings and sub-layers, 0..1; in train mode only.
        layer_norm_eps, text_norm_eps: Of the LayerNorms of blocks and of text embeddings.
    """

    model_type = "vilt_subnet"

    def __init__(
        self,
        hidden_size: int = 768,
        num_attention_heads: int = 12,
        blocks: Sequence[str] = ("layer",) * 12,
        vocab_size: int = 30522,
        max_position_embeddings: int = 40,
        patch_size: int = 32,
        position_grid: int = 12,
        bottleneck: int = 96,
        skip_bottleneck: int = 192,
        num_images: int = 1,
        head_width: int | None = 1536,
        hidden_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-6,
        text_norm_eps: float = 1e-12,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.blocks = list(blocks)
        self.vocab_size, self.max_position_embeddings = vocab_size, max_position_embeddings
        self.patch_size, self.position_grid = patch_size, position_grid
        self.bottleneck, self.skip_bottleneck = bottleneck, skip_bottleneck
        self.num_images, self.head_width = num_images, head_width
        self.hidden_dropout_prob = hidden_dropout_prob
        self.layer_norm_eps, self.text_norm_eps = layer_norm_eps, text_norm_eps
        super().__init__(**kwargs)


class Attention(nn.Module):
    """Multi-head attention of some tokens to all."""

    def __init__(self, config: ViltSubnetConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """(batch, n, hidden_size) of the tokens `x` (batch, n, hidden_size) over what `mask` shows of `y`."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), self.key(y), self.value(y))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Adapter(nn.Module):
    """`up(relu(down(LayerNorm(x))))`; with a bottleneck of 0, nothing."""

    def __init__(self, config: ViltSubnetConfig, bottleneck: int) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        if bottleneck:
            self.norm = nn.LayerNorm(config.hidden_size)
            self.down = nn.Linear(config.hidden_size, bottleneck)
            self.up = nn.Linear(bottleneck, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, hidden_size), or a zero where there is none."""
        return self.up(torch.relu(self.down(self.norm(x)))) if self.bottleneck else x.new_zeros(())


class Block(nn.Module):
    """Self-attention, then an MLP; pre-LayerNorm. An adapter beside each reads what comes before the LayerNorm."""

    def __init__(self, config: ViltSubnetConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(size, config.layer_norm_eps) for _ in range(2))
        self.attention = Attention(config)
        self.mlp_in, self.mlp_out = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.attention_adapter, self.mlp_adapter = (Adapter(config, config.bottleneck) for _ in range(2))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor, first: bool) -> Tensor:
        """New hidden vectors; with `first`, those of the first token alone."""
        normed = self.attention_norm(x)
        x, queries = (x[:, :1], normed[:, :1]) if first else (x, normed)
        x = x + self.dropout(self.attention(queries, normed, mask)) + self.attention_adapter(x)
        update = self.mlp_out(self.dropout(F.gelu(self.mlp_in(self.mlp_norm(x)))))
        return x + self.dropout(update) + self.mlp_adapter(x)


class SkipAdapter(Adapter):
    """What runs in the place of a skipped block: an adapter plus its input, or the input alone."""

    def forward(self, x: Tensor, mask: Tensor, first: bool) -> Tensor:  # type: ignore[override]
        """As a block; only `x` is read."""
        x = x[:, :1] if first else x
        return x + super().forward(x)


class ViltSubnet(PreTrainedModel):
    """The model and its head.

    Args:
        config: Its sizes.
    """

    config_class = ViltSubnetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: ViltSubnetConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.text_positions = nn.Embedding(config.max_position_embeddings, size)
        self.text_token_types = nn.Embedding(2, size)
        self.text_norm = nn.LayerNorm(size, config.text_norm_eps)
        self.patch_embedding = nn.Conv2d(3, size, config.patch_size, config.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size))
        self.image_positions = nn.Parameter(torch.zeros(1, config.position_grid**2 + 1, size))
        self.token_types = nn.Embedding(3, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        bottlenecks = {"adapter": config.skip_bottleneck, "nothing": 0}
        self.blocks = nn.ModuleList(
            Block(config) if kind == "layer" else SkipAdapter(config, bottlenecks[kind]) for kind in config.blocks
        )
        self.final_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.pooler = nn.Linear(size, size)
        features, inside = size * config.num_images, config.head_width
        head: list[nn.Module] = [nn.Linear(features, inside or config.num_labels)]
        head += [nn.LayerNorm(inside), nn.GELU(), nn.Linear(inside, config.num_labels)] if inside else []
        self.classifier = nn.Sequential(*head)
        self.post_init()

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """(batch, tokens, hidden_size): words, positions and the type of words."""
        text = self.word_embeddings(input_ids) + self.text_positions.weight[: input_ids.shape[1]]
        return self.dropout(self.text_norm(text + self.text_token_types.weight[0])) + self.token_types.weight[0]

    def embed_image(self, pixel_values: Tensor, pixel_mask: Tensor | None, token_type: int) -> tuple[Tensor, Tensor]:
        """Class token and patches with positions and the type of images; and (batch, 1 + patches) bool, True = seen."""
        side = self.config.patch_size
        seen = pixel_values.sum(1) != 0 if pixel_mask is None else pixel_mask != 0
        seen = seen[:, ::side, ::side]
        patches = (self.patch_embedding(pixel_values) + self.positions(seen)).flatten(2).mT
        first = (self.class_token + self.image_positions[:, :1]).expand(pixel_values.shape[0], -1, -1)
        image = self.dropout(torch.cat((first, patches), dim=1)) + self.token_types.weight[token_type]
        return image, F.pad(seen.flatten(1), (1, 0), value=True)

    def positions(self, seen: Tensor) -> Tensor:
        """(batch, hidden_size, rows, columns): the stored grid, stretched over the rows and columns of each image."""
        side = self.config.position_grid
        grid = self.image_positions[0, 1:].unflatten(0, (side, side))
        height, width = (edge.sum(1).clamp(min=1) for edge in (seen[:, :, 0], seen[:, 0]))
        low, high, part = stretch(height, seen.shape[1], side, grid.dtype)
        rows = torch.lerp(grid[low], grid[high], part[:, :, None, None])
        low, high, part = (t[:, None, :, None] for t in stretch(width, seen.shape[2], side, grid.dtype))
        low, high = (index.expand(-1, rows.shape[1], -1, rows.shape[3]) for index in (low, high))
        whole = torch.lerp(rows.gather(2, low), rows.gather(2, high), part)
        return torch.where(seen[..., None], whole, 0.0).permute(0, 3, 1, 2)

    def fuse(self, text: Tensor, text_mask: Tensor, pixel_values: Tensor, pixel_mask: Tensor | None, number: int) -> Tensor:
        """(batch, hidden_size) features of embedded texts and of an image each, the example's image `number`."""
        image, seen = self.embed_image(pixel_values, pixel_mask, 1 + number)
        x, mask = torch.cat((text, image), dim=1), torch.cat((text_mask, seen), dim=1)[:, None, None]
        for index, block in enumerate(self.blocks):
            x = block(x, mask, index == len(self.blocks) - 1)
        return torch.tanh(self.pooler(self.final_norm(x[:, 0])))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Logits of pairs of a text and its image, or images.

        Args:
            input_ids: (batch, tokens) int64.
            attention_mask: As `input_ids`, 1 = a real token; None = all are.
            pixel_values: (batch, 3, height, width) float, whole patches, smaller images padded at their right and bottom;
                (batch, num_images, 3, height, width) where an example has several.
            pixel_mask: As `pixel_values` without channels, 0 = padding; None = where all channels are 0.
            labels: (batch, num_labels) float for binary cross-entropy, (batch,) int64 for cross-entropy; None = no loss.
            return_dict: Whether to return a `SequenceClassifierOutput`, or a tuple.
            **kwargs: Whatever else a tokenizer gives; not read.
        """
        if pixel_values is None:
            raise ValueError("pixel_values is missing: each text needs its image; AutoProcessor makes them")
        mask = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        text = self.embed_text(input_ids)
        several = self.config.num_images > 1
        images = pixel_values.unbind(1) if several else (pixel_values,)
        masks = (None,) * len(images) if pixel_mask is None else pixel_mask.unbind(1) if several else (pixel_mask,)
        features = [self.fuse(text, mask, *image, number) for number, image in enumerate(zip(images, masks, strict=True))]
        logits = self.classifier(torch.cat(features, dim=-1))
        loss = None if labels is None else self.loss(logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output if return_dict else output.to_tuple()

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over examples, nats; binary cross-entropy is summed over labels."""
        if labels.is_floating_point():
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / logits.shape[0]
        return F.cross_entropy(logits, labels)


def stretch(counts: Tensor, places: int, points: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Where places along a side lie between stored points, corner on corner.

    Args:
        counts: (batch,) int64, 1 or more: how many places are used; what the others get has no meaning.
        places: How many there are.
        points: How many points are stored.
        dtype: Of the third result.

    Returns:
        The point before and the point behind each place, (batch, places) int64, and how far it is from the first to the
        second, 0..1.
    """
    last = (counts[:, None] - 1).clamp(min=1)
    reached = torch.arange(places, device=counts.device) * (points - 1)
    low = (reached // last).clamp(max=points - 1)
    return low, (low + 1).clamp(max=points - 1), (reached % last).to(dtype) / last.to(dtype)
