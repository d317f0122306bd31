"""A Llama decoder as training runs it: frozen weights in bfloat16, and images and questions in the same matrix products.

The residual stream and the normalization stay in float32.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

LORA_RANK = 16
LORA_SCALE = 2.0
EPSILON = 1e-5
"""Of SmolLM2's RMSNorm."""

GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""The projections of a layer; those that read the same input are one product."""


def projections(layer: Any) -> dict[str, nn.Linear]:
    """Return the projections of a layer of transformers' Llama by name."""
    return {**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())}


class LoRA(nn.Module):
    """Frozen bfloat16 layers that read the same input, and a trained float32 update of each: y = W x + scale B A x.

    Source: arXiv 2106.09685.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = torch.cat([linear.weight.detach() for linear in linears]).bfloat16()
        self.down = nn.ParameterList(torch.empty(LORA_RANK, linear.in_features) for linear in linears)
        self.up = nn.ParameterList(torch.zeros(linear.out_features, LORA_RANK) for linear in linears)
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all layers side by side, (tokens, sizes), of (tokens, size), both bfloat16."""
        down = torch.cat(list(self.down)).bfloat16()
        up = (LORA_SCALE * torch.block_diag(*self.up)).bfloat16()
        return torch.addmm(F.linear(x, self.weight), F.linear(x, down), up.T)


def add_and_normalize(x: Tensor, change: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residual stream x + change, float32 (tokens, size), and its RMSNorm in bfloat16."""
    x = x + change
    return x, (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight).bfloat16()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return (tokens, heads, size) with rotary positions."""
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).bfloat16()


def causal_weights(scores: Tensor, scale: float) -> Tensor:
    """Return the attention of (rows, new tokens, all tokens) scores: each new token reads all earlier ones and itself."""
    new, every = scores.shape[-2:]
    places = torch.arange(every)
    hidden = places[None] > places[every - new :, None]
    return (scores.float() * scale).masked_fill(hidden, -torch.inf).softmax(-1).bfloat16()


def gated(both: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    gate, up = both.float().chunk(2, -1)
    return (F.silu(gate) * up).bfloat16()


class FastDecoder(nn.Module):
    """The layers of transformers' Llama with LoRA; its parameters are those of the updates.

    Args:
        decoder: A `LlamaModel`, which is read and not changed.
        compiled: Whether to compile what is between the matrix products, which needs a C++ compiler.
    """

    def __init__(self, decoder: Any, compiled: bool) -> None:
        super().__init__()
        self.config = decoder.config
        self.layers = nn.ModuleList()
        self.norms = []
        for layer in decoder.layers:
            modules = projections(layer)
            self.layers.append(nn.ModuleList(LoRA([modules[name] for name in names]) for names in GROUPS))
            self.norms.append((layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()))
        self.last_norm = decoder.norm.weight.detach()
        self.frequencies = decoder.rotary_emb.inv_freq
        steps = (add_and_normalize, rotate, causal_weights, gated)
        if compiled:
            steps = tuple(torch.compile(step, dynamic=True) for step in steps)
        self.add_and_normalize, self.rotate, self.causal_weights, self.gated = steps

    def forward(self, prefix: Tensor, text: Tensor, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what goes into each layer, and the normalized output, each (questions, tokens, size) float32.

        Args:
            prefix: (images, prefix tokens, size) embeddings.
            text: (questions, tokens, size) embeddings, padded on the right. Its positions continue those of the prefix.
            rows: (questions,) int64: the image of each question.
        """
        images, before, _ = prefix.shape
        questions, tokens, _ = text.shape
        places = torch.cat((torch.arange(before).repeat(images), torch.arange(before, before + tokens).repeat(questions)))
        angles = (places[:, None] * self.frequencies)[:, None]
        rotary = (angles.cos(), angles.sin())
        x = torch.cat((prefix.flatten(0, 1), text.flatten(0, 1)))
        change = torch.zeros(x.shape, dtype=torch.bfloat16)
        cut = images * before
        states = []
        for (first_norm, second_norm), (qkv, out, both, down) in zip(self.norms, self.layers, strict=True):
            states.append((x[cut:] + change[cut:]).view_as(text))
            x, normal = self.add_and_normalize(x, change, first_norm)
            change = out(self.read_tokens(qkv(normal), prefix.shape, tokens, rows, rotary))
            x, normal = self.add_and_normalize(x, change, second_norm)
            change = down(self.gated(both(normal)))
        last = x[cut:] + change[cut:]
        last = last * torch.rsqrt(last.square().mean(-1, keepdim=True) + EPSILON) * self.last_norm
        return states, last.view_as(text)

    def read_tokens(
        self, projected: Tensor, prefix: torch.Size, tokens: int, rows: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return the attention's output, (all tokens, size), of the queries, keys and values of all tokens."""
        queries = self.config.num_attention_heads
        keys = self.config.num_key_value_heads
        each_head = projected.view(len(projected), queries + 2 * keys, -1)
        q, k = self.rotate(each_head[:, :-keys], *rotary).split((queries, keys), 1)
        v = each_head[:, -keys:]
        cut = prefix[0] * prefix[1]
        q_image, k_image, v_image = (x[:cut].unflatten(0, prefix[:2]) for x in (q, k, v))
        q_text, k_text, v_text = (x[cut:].unflatten(0, (-1, tokens)) for x in (q, k, v))
        of_images = self.attend(q_image, k_image, v_image)
        k_all = torch.cat((k_image.index_select(0, rows), k_text), 1)
        v_all = torch.cat((v_image.index_select(0, rows), v_text), 1)
        of_texts = self.attend(q_text, k_all, v_all)
        return torch.cat((of_images.flatten(0, 1), of_texts.flatten(0, 1)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return (rows, new tokens, heads * size) of (rows, tokens, heads, size); keys are those of all tokens."""
        rows, new, heads, size = query.shape
        every, keys = key.shape[1:3]
        group = heads // keys
        q = query.view(rows, new, keys, group, size).permute(0, 2, 3, 1, 4).reshape(rows * keys, group * new, size)
        k = key.permute(0, 2, 3, 1).reshape(rows * keys, size, every)
        v = value.permute(0, 2, 1, 3).reshape(rows * keys, every, size)
        weights = self.causal_weights(torch.bmm(q, k).view(rows * keys * group, new, every), size**-0.5)
        read = torch.bmm(weights.view(rows * keys, group * new, every), v).view(rows, keys, group, new, size)
        return read.permute(0, 3, 1, 2, 4).reshape(rows, new, -1)
