"""METER's network: CLIP-ViT and RoBERTa encoders, then six text and six image fusion layers side by side.

Exported folders carry a copy of this file, so it imports torch, transformers and the files next to it alone.

Source: METER (arXiv 2111.02387) with the adapters of DAS (arXiv 2309.01479).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.models.adapters import add_to, parallel_adapter
from das_gym.models.attention import Attention

SPARE_POSITIONS = 2
"""Text positions that no token uses: RoBERTa counts from 2 on."""


@dataclass(frozen=True)
class METERConfig:
    """Sizes of a METER model. Widths are in units, sizes in pixels, lengths in tokens.

    Attributes:
        image_size, patch_size: Sides of the square image and of a patch; image_size is a multiple of patch_size.
        hidden_size, num_heads, fusion_layers: The fusion layers, as many for each stream.
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

    @property
    def image_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def gelu(x: Tensor) -> Tensor:
    """Return GELU of a tensor that is not used again: without gradients it is overwritten, which saves memory traffic."""
    return F.gelu(x) if torch.is_grad_enabled() and x.requires_grad else torch.ops.aten.gelu_(x)


class FusionLayer(nn.Module):
    """Self-attention, cross-attention to the other stream, feed-forward; post-LayerNorm.

    A parallel adapter is next to each sub-layer. The two of attention are added before the LayerNorm, that of the
    feed-forward after it, as in the code of DAS.
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

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        attend_x: Tensor | None,
        attend_y: Tensor | None,
        pooled_only: bool = False,
        share: Callable[[str, Tensor, Callable[[], Any]], Any] = lambda part, read, compute: compute(),
    ) -> Tensor:
        """Return new (batch, tokens, hidden_size) of the stream `x` next to the stream `y`; one token if `pooled_only`.

        `share` may give what it has computed before of a part that reads one stream alone.
        """
        hidden = share("self", x, lambda: self.attend_self(x, attend_x, pooled_only))
        if pooled_only:
            mixed = self.cross_attention.forward_pooled(hidden, y, attend_y)
        else:
            mixed = self.cross_attention(hidden, share("cross", y, lambda: self.cross_attention.keys_values(y)), attend_y)
        hidden = self.cross_norm(add_to(self.dropout(mixed), hidden, self.cross_adapter(hidden)))
        update = self.dropout(self.feed_out(gelu(self.feed_in(hidden))))
        return add_to(self.feed_norm(add_to(update, hidden)), self.feed_adapter(hidden))

    def attend_self(self, x: Tensor, attend: Tensor | None, pooled_only: bool = False) -> Tensor:
        """Return (batch, tokens, hidden_size) after the first sub-layer, which reads this stream alone."""
        if pooled_only:
            mixed = self.self_attention.forward_pooled(x[:, :1], x, attend)
            x = x[:, :1]
        else:
            mixed = self.self_attention(x, self.self_attention.keys_values(x), attend)
        return self.self_norm(add_to(self.dropout(mixed), x, self.self_adapter(x)))


class METERNetwork(nn.Module):
    """The parts of METER, without the decision which fusion layers run."""

    def build_network(self, config: METERConfig, make_layer: Callable[[int], nn.Module]) -> None:
        """Create all modules; `make_layer` makes a fusion layer from its index: text layers first, then image layers."""
        from transformers import CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel

        size = config.hidden_size
        count = config.fusion_layers
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
        self.text_transform = nn.Linear(config.text_width, size)
        self.image_transform = nn.Linear(config.vision_width, size)
        self.first_text_token = nn.Parameter(torch.zeros(1, 1, size))
        self.token_types = nn.Embedding(3, size)
        self.text_layers = nn.ModuleList(make_layer(index) for index in range(count))
        self.image_layers = nn.ModuleList(make_layer(index) for index in range(count, 2 * count))
        self.text_pooler = nn.Linear(size, size)
        self.image_pooler = nn.Linear(size, size)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (batch, tokens, hidden_size), before token types; ValueError for too many tokens."""
        length = input_ids.shape[1]
        longest = self.text_encoder.config.max_position_embeddings - SPARE_POSITIONS
        if length > longest:
            raise ValueError(f"text too long: got `input_ids` of {length} tokens, expected at most {longest}. Truncate it")
        real = None if attention_mask.is_meta else attention_mask  # transformers reads the values of masks
        hidden = self.text_encoder(input_ids, attention_mask=real).last_hidden_state
        return self.text_transform(hidden)

    def encode_image(self, image: Tensor) -> Tensor:
        """Return (batch, patches + 1, hidden_size), before token types."""
        hidden = self.image_encoder(image).last_hidden_state
        return self.image_transform(self.image_encoder.post_layernorm(hidden))

    def embed_streams(self, text: Tensor, image: Tensor, image_types: Tensor | int) -> tuple[Tensor, Tensor]:
        """Replace the first text token and add token types; `image_types` are one number, or (batch,) int64."""
        # Not written in place: encoder outputs are cached and shared, and a compiled graph allows no write to its input.
        place = torch.arange(text.shape[1], device=text.device)[:, None]
        text = torch.where(place == 0, self.first_text_token, text)
        types = self.token_types.weight
        image_type = types[image_types] if isinstance(image_types, int) else types[image_types, None]
        return text + types[0], image + image_type

    def pool_streams(self, text: Tensor, image: Tensor) -> Tensor:
        """Return (batch, 2 * hidden_size) features of the first token of each stream: text, then image."""
        text = torch.tanh(self.text_pooler(text[:, 0]))
        image = torch.tanh(self.image_pooler(image[:, 0]))
        return torch.cat((text, image), dim=-1)
