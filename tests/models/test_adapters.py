import torch

from das_gym.models.adapters import SkipAdapter, add_to


def test_in_place_sum_is_bit_identical():
    x, y, z = torch.randn(3, 2, 5, 8)
    expected = x + y + z + 0.5
    place = x.data_ptr()
    total = add_to(x, y, z, torch.tensor(0.5))
    assert torch.equal(total, expected)
    assert total.data_ptr() == place


def test_residual_keeps_its_precision_under_autocast():
    adapter, x = SkipAdapter(8, 4), 1.0 + 1e-4 * torch.randn(2, 3, 8)
    torch.nn.init.zeros_(adapter.up.weight)
    with torch.autocast("cpu", torch.bfloat16):
        y = adapter(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, x)
    y.sum().backward()
    assert adapter.up.weight.grad is not None
