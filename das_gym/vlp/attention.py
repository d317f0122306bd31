"""Multi-head attention, used by METER's fusion layers and ViLT's blocks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Attention(nn.Module):
    """Multi-head attention with separate projections, without residual and LayerNorm."""

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
        """Keys and values of the attended sequence, (batch, heads, tokens, head_size) each."""
        return self._split(self.key(y)), self._split(self.value(y))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], attend: Tensor | None) -> Tensor:
        """(batch, queries, hidden_size) of the queries `x` over what they may attend to."""
        keys, values = keys_values
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(self._split(self.query(x)), keys, values, attend, dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))
