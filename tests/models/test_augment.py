"""RandAugment: torchvision's, and drawn from a separate seed."""

import pytest
import torch
from PIL import Image

from das_gym.models.inputs import randaugment


@pytest.fixture
def image() -> Image.Image:
    gradient = Image.linear_gradient("L")
    return Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))).resize((48, 32))


def test_randaugment_is_torchvisions_and_seeded(image):
    from torchvision.transforms import RandAugment

    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    changed = [randaugment(image, seed).tobytes() for seed in range(12)]
    assert torch.equal(torch.rand(4), expected)  # torch's own generator was not advanced
    assert changed == [randaugment(image, seed).tobytes() for seed in range(12)]
    assert len(set(changed)) >= 6
    torch.manual_seed(7)
    assert changed[7] == RandAugment(2, 9)(image).tobytes()


def test_randaugment_leaves_all_random_states(image, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("dropout on a GPU would follow the images"))
    before = torch.get_rng_state()
    randaugment(image, 3)
    assert torch.equal(torch.get_rng_state(), before)
