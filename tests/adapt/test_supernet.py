from collections.abc import Iterator

import numpy as np
import pytest
from das_gym.adapt.settings import SupernetConfig
from das_gym.adapt.step_loss import StepLoss
from das_gym.adapt.supernet import describe_reliance, random_mask, train_supernet
from das_gym.adapt.training import StepResult

from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig


def test_random_mask_is_uniform_over_counts_and_layers():
    masks = np.array([random_mask(0, step, 12, 8) for step in range(3600)])
    counts = np.bincount(masks.sum(axis=1), minlength=13)
    assert counts[9:].tolist() == [0] * 4
    assert (abs(counts[:9] - 400) < 80).all()  # four standard deviations
    assert (abs(masks.mean(axis=0) - 1 / 3) < 0.04).all()
    assert np.array_equal(random_mask(3, 7, 12, 8), random_mask(3, 7, 12, 8))
    assert len({random_mask(seed, step, 12, 8).tobytes() for seed in (3, 4) for step in range(20)}) > 30
    assert {int(random_mask(0, step, 2, 8).sum()) for step in range(50)} == {0, 1, 2}
    assert not any(random_mask(0, step, 12, 0).any() for step in range(20))


@pytest.mark.slow
def test_train_supernet_draws_a_mask_for_each_step(shapes_folder, tmp_path, monkeypatch):
    seen, parts = list[np.ndarray](), StepLoss.parts

    def watched(self: StepLoss, step: int, mask: np.ndarray) -> Iterator[StepResult]:
        seen.append(mask)
        return parts(self, step, mask)

    monkeypatch.setattr(StepLoss, "parts", watched)
    config = SupernetConfig(seed=5, steps=4, batch_size=4, max_skipped=6)
    out = train_supernet(config, ProblemConfig(data_root=str(shapes_folder)), tmp_path / "supernet.safetensors")
    assert [m.tolist() for m in seen] == [random_mask(5, step, 12, 6).tolist() for step in range(4)]
    supernet = Adaptation.load(out)
    assert supernet.mask is None
    assert 0 <= supernet.info["blind"]["accuracy"] <= 1
    assert supernet.info["seeing"].keys() == supernet.info["blind"].keys()
    assert any(name.startswith("question/") for name in supernet.info["seeing"])


def test_describe_reliance_names_the_metrics_that_do_not_depend_on_the_image():
    good = describe_reliance({"accuracy": 0.9, "question/colour": 1.0}, {"accuracy": 0.3, "question/colour": 1.0})
    assert good.endswith("90.0 %, 30.0 % with every image replaced by the mean image")
    poor = describe_reliance({"accuracy": 0.7, "question/colour": 0.10}, {"accuracy": 0.4, "question/colour": 0.12})
    assert "\nnot clearly better than without images: question/colour 10 % (12 % without)" in poor
