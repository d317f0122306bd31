from __future__ import annotations

import pytest
import torch

from das_gym.models.adapters import SkipAdapter, add_to


def test_in_place_sum_is_bit_identical():
    x, y, z = torch.randn(3, 2, 5, 8)
    expected = x + y + z + 0.5
    place = x.data_ptr()
    total = add_to(x, y, z, torch.tensor(0.5))
    assert torch.equal(total, expected)
    assert total.data_ptr() == place


@pytest.mark.parametrize("other", [torch.ones(3, 4, 8), torch.ones(1, 4, 8, dtype=torch.float64)])
def test_sum_of_another_type_or_shape_is_not_in_place(other: torch.Tensor):
    x = torch.zeros(1, 4, 8)
    total = add_to(x, other)
    assert torch.equal(total, (x + other).to(other.dtype))
    assert not x.any()


def test_residual_keeps_its_precision_under_autocast():
    adapter, x = SkipAdapter(8, 4), 1.0 + 1e-4 * torch.randn(2, 3, 8)
    torch.nn.init.zeros_(adapter.up.weight)
    with torch.autocast("cpu", torch.bfloat16):
        y = adapter(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, x)
    y.sum().backward()
    assert adapter.up.weight.grad is not None
