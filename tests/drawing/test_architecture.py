import itertools

import numpy as np
import pytest
from PIL import ImageColor

from das_gym.drawing.architecture import KEPT, SMALL, WIDTH, Architecture, draw, font, layout
from das_gym.problem.budget import MaskCost


def search_architecture(n_units: int) -> Architecture:
    names = [f"decoder.{i // 2}.{'mlp' if i % 2 else 'attention'}" for i in range(n_units)]
    return Architecture.from_names(names, macs=MaskCost(30 * n_units, 30 * n_units, np.array([10, 20] * (n_units // 2))))


def drawn(mask: np.ndarray) -> np.ndarray:
    return draw(search_architecture(len(mask)), mask, "a title", ["a fact"])


def blue(image: np.ndarray) -> int:
    return int((image == ImageColor.getrgb(KEPT)).all(axis=2).sum())


@pytest.mark.parametrize("n_units", [12, 24, 72])
def test_draw_fills_kept_units_by_their_share(n_units):
    nothing, half = np.zeros(n_units, bool), np.arange(n_units) % 2 == 1  # the MLPs, which cost twice as much
    whole, rest = drawn(nothing), drawn(half)
    assert whole.dtype == np.uint8
    assert whole.shape == rest.shape
    assert whole.shape[1:] == (WIDTH, 3)
    assert whole.shape[0] % 2 == 0
    legend = blue(drawn(~nothing))
    assert (blue(rest) - legend) / (blue(whole) - legend) == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("n_units", [2, 12, 24, 72, 200])
def test_layout_keeps_labels_apart(n_units):
    architecture = search_architecture(n_units)
    places = []
    for unit, box in zip(architecture.units, layout(architecture).boxes, strict=True):
        half, middle = font(SMALL).getlength(unit.label) / 2, (box[0] + box[2]) / 2
        places.append((box[1], min(box[0], middle - half), max(box[2], middle + half)))
    places.sort()
    assert all(one[0] != other[0] or one[2] < other[1] for one, other in itertools.pairwise(places))
    assert max(right for _, _, right in places) <= WIDTH


def test_architecture_reads_stages_from_a_table(small_problem, small_table):
    known = Architecture.from_layers(small_problem.vlp.layers, small_table.layer_macs)
    assert Architecture.from_table(small_table) == known
