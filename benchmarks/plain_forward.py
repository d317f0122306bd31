"""Compare a plain forward of METER with a forward written like METER's own code, on the same weights.

    python -m benchmarks.plain_forward               METER-base, batches of 1, 2 and 8, about 5 minutes on 2 quiet cores
    python -m benchmarks.plain_forward --batch 1

The reference computes attention of text and fusion layers step by step (scores, additive mask, softmax), uses
`multi_head_attention_forward` with packed weights in the vision encoder, and computes every token in the last stage. Both
sides have adapters, skip nothing, cache nothing and return the same features. They are timed alternately; ratios are
medians and quartiles over pairs of neighboring runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.machine import make_parser
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.problem.latency import Spread, measure_latency

TEXT = 40
"""Tokens of a text."""


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Attention of (batch, n, width) tensors; `mask` is added to the scores."""
    query, key, value = (t.view(*t.shape[:2], heads, -1).permute(0, 2, 1, 3) for t in (query, key, value))
    scores = torch.matmul(query, key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    weights = F.dropout(scores.softmax(-1), 0.1, training=False)
    return torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous().flatten(2)


class ReferenceLike:
    """METER's forward, written like METER's own code.

    Args:
        vlp: Model in eval mode, whose weights are used.
    """

    def __init__(self, vlp: METER) -> None:
        self.vlp = vlp
        self.packed = [
            tuple(
                torch.cat([getattr(getattr(layer.self_attn, f"{part}_proj"), kind) for part in "qkv"])
                for kind in ("weight", "bias")
            )
            for layer in vlp.image_encoder.encoder.layers
        ]

    def text(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Run RoBERTa."""
        hidden = self.vlp.text_encoder.embeddings(input_ids=input_ids)
        for layer in self.vlp.text_encoder.encoder.layer:
            inner = layer.attention.self
            mixed = attention(inner.query(hidden), inner.key(hidden), inner.value(hidden), self.vlp.config.text_heads, mask)
            hidden = layer.attention.output(mixed, hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
        return self.vlp.text_transform(hidden)

    def image(self, image: Tensor) -> Tensor:
        """Run CLIP-ViT, with tokens as the first dimension."""
        encoder = self.vlp.image_encoder
        hidden = encoder.pre_layrnorm(encoder.embeddings(image)).permute(1, 0, 2)
        for layer, (weight, bias) in zip(encoder.encoder.layers, self.packed, strict=True):
            normed = layer.layer_norm1(hidden)
            mixed, _ = F.multi_head_attention_forward(
                normed, normed, normed, normed.shape[-1], self.vlp.config.vision_heads, weight, bias, None, None, False, 0.0,
                layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias, training=False, need_weights=False,
            )  # fmt: skip
            hidden = hidden + mixed
            inner = layer.mlp.fc1(layer.layer_norm2(hidden))
            hidden = hidden + layer.mlp.fc2(inner * torch.sigmoid(1.702 * inner))
        return self.vlp.image_transform(encoder.post_layernorm(hidden.permute(1, 0, 2)))

    def fusion(self, layer: Any, x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor) -> Tensor:
        """Run a fusion layer on all tokens."""
        for part, other, mask, norm, adapter in (
            (layer.self_attention, None, x_mask, layer.self_norm, layer.self_adapter),
            (layer.cross_attention, y, y_mask, layer.cross_norm, layer.cross_adapter),
        ):
            other = x if other is None else other
            mixed = attention(part.query(x), part.key(other), part.value(other), part.num_heads, mask)
            x = norm(layer.dropout(part.out(mixed)) + x + adapter(x))
        update = layer.dropout(layer.feed_out(F.gelu(layer.feed_in(x))))
        return layer.feed_norm(update + x) + layer.feed_adapter(x)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Return (batch, 2 * hidden_size) features."""
        vlp = self.vlp
        text_mask = (1.0 - batch["attention_mask"][:, None, None].float()) * -10000.0
        text = self.text(batch["input_ids"], text_mask)
        image = self.image(batch["image"])
        image_mask = torch.zeros(len(image), 1, 1, image.shape[1])
        text = torch.cat((vlp.first_text_token.expand(len(text), -1, -1), text[:, 1:]), dim=1)
        text = text + vlp.token_types(torch.zeros(text.shape[:2], dtype=torch.long))
        image = image + vlp.token_types(torch.ones(image.shape[:2], dtype=torch.long))
        for text_layer, image_layer in zip(vlp.text_layers, vlp.image_layers, strict=True):
            text, image = (
                self.fusion(text_layer.layer, text, image, text_mask, image_mask),
                self.fusion(image_layer.layer, image, text, image_mask, text_mask),
            )
        pooled = torch.tanh(vlp.text_pooler(text[:, 0])), torch.tanh(vlp.image_pooler(image[:, 0]))
        return torch.cat(pooled, dim=-1)


def make_batch(config: METERConfig, rows: int) -> dict[str, Tensor]:
    """Return random images, and texts of `TEXT` tokens."""
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(5, config.vocab_size, (rows, TEXT), generator=generator)
    image = torch.randn(rows, 3, config.image_size, config.image_size, generator=generator)
    return {"image": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def measure(vlp: METER, rows: int, repeats: int) -> dict[str, Any]:
    """Return the record of one batch size."""
    batch = make_batch(vlp.config, rows)
    reference = ReferenceLike(vlp)
    difference = float((vlp(batch) - reference(batch)).abs().max())
    times = measure_latency({"ours": lambda: vlp(batch), "reference": lambda: reference(batch)}, repeats, runs=1)
    ratio = Spread.of(times["reference"] / times["ours"])
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {"faster": ratio._asdict(), "milliseconds": medians, "largest_difference": difference}


def build(**sizes: int) -> METER:
    """Return METER-base with random weights, biases included, or a smaller one."""
    torch.manual_seed(0)
    vlp = METER(METERConfig(**sizes))
    for module in vlp.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.02)
    vlp.freeze()
    return vlp


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("plain_forward", __doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--repeats", type=int, default=9, help="timed forwards of each")
    options = parser.parse_args(arguments)
    vlp = build()
    for rows in options.batch:
        record = measure(vlp, rows, options.repeats)
        ratio = record["faster"]
        times = record["milliseconds"]
        print(
            f"batch {rows}: {ratio['median']:.3f} times as fast ({ratio['low']:.3f}..{ratio['high']:.3f}); "
            f"{times['ours']:.0f} ms instead of {times['reference']:.0f} ms; features differ by at most "
            f"{record['largest_difference']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
