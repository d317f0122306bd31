"""Multi-head attention of METER's fusion layers and ViLT's blocks.

Exported folders carry a copy of this file, so it imports nothing but torch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Attention(nn.Module):
    """Multi-head attention with separate projections, without residual and LayerNorm; `dropout`, 0..1, is of its weights."""

    fold = False
    """Whether `forward_pooled` takes its cheaper way; not in an exported model."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the attended sequence, (batch, heads, tokens, head_size) each."""
        return self._split(self.key(y)), self._split(self.value(y))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], attend: Tensor | None) -> Tensor:
        """Return (batch, queries, hidden_size) for the queries `x`; the batch of either side may be 1, and is expanded."""
        queries = self._split(self.query(x))
        keys, values = keys_values
        if queries.shape[0] != keys.shape[0]:
            rows = max(queries.shape[0], keys.shape[0])
            queries, keys, values = (part.expand(rows, -1, -1, -1) for part in (queries, keys, values))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, attend, dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward_pooled(self, x: Tensor, y: Tensor, attend: Tensor | None) -> Tensor:
        """Return (batch, 1, hidden_size) for the query `x`, (batch, 1, hidden_size), that attends to the tokens of `y`.

        With `fold`, one query goes through the key matrix and one mix of tokens through the value matrix, which is cheaper
        than keys and values of all tokens. The bias of the keys falls out of the softmax. LoRA's layers have no such matrix.
        """
        if not self.fold or type(self.key) is not nn.Linear or type(self.value) is not nn.Linear:
            return self(x, self.keys_values(y), attend)
        key, value = (part.weight.unflatten(0, (self.num_heads, -1)) for part in (self.key, self.value))
        query = self._split(self.query(x)).squeeze(2)
        scores = torch.einsum("bhd,hdw->bhw", query, key) @ y.mT * query.shape[-1] ** -0.5
        if attend is not None:
            scores = scores.masked_fill(~attend[:, 0], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if attend is not None:
            weights = weights.masked_fill(~attend[:, 0], 0.0)  # no token to attend to: 0 as in `forward`, not NaN
        weights = F.dropout(weights, self.dropout, self.training)
        mixed = torch.einsum("bhw,hdw->bhd", weights.to(y.dtype) @ y, value)
        mixed = mixed + weights.sum(-1, keepdim=True) * self.value.bias.unflatten(0, (self.num_heads, -1))
        return self.out(mixed.flatten(1)[:, None])


def fold_single_queries(model: nn.Module) -> None:
    """Set `Attention.fold` in a model."""
    for part in model.modules():
        if isinstance(part, Attention):
            part.fold = True
