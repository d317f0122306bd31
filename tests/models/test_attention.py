import pytest
import torch
from torch import Tensor, nn

from das_gym.models.attention import Attention


class Replaced(nn.Linear):
    """A projection whose output its weight alone does not determine, such as LoRA's."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("part", [None, "key", "value"])
def test_pooled_token_equals_plain_attention(part):
    """Also where projections are replaced, and where no token may be attended to."""
    torch.manual_seed(0)
    attention = Attention(16, 4, 0.0).double().eval()
    attention.fold = True
    y = torch.randn(3, 5, 16, dtype=torch.float64)
    attend = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None]
    if part is not None:
        setattr(attention, part, Replaced(16, 16).double())
    plain, pooled = attention(y, attention.keys_values(y), attend)[:, :1], attention.forward_pooled(y[:, :1], y, attend)
    assert pooled.isfinite().all()
    assert torch.allclose(pooled, plain, rtol=0, atol=1e-12)
