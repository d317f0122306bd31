"""Scenes, and how generated data sets are written."""

import itertools
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_gym.shapes import BUNDLED, bundled_root
from das_gym.shapes.captions import write_shapes_captions
from das_gym.shapes.nlvr2 import write_shapes_nlvr2
from das_gym.shapes.scenes import (
    COLORS,
    IMAGE_SIZE,
    MAX_OBJECTS,
    MAX_RADIUS,
    MIN_GAP,
    MIN_OBJECTS,
    MIN_RADIUS,
    SHAPES,
    Scene,
    SceneObject,
    render,
    sample_scene,
)
from das_gym.shapes.vqa import write_shapes


def some_scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def test_sampled_scenes_are_within_bounds():
    scenes = some_scenes(300)
    assert {len(scene.objects) for scene in scenes} == set(range(MIN_OBJECTS, MAX_OBJECTS + 1))
    for scene in scenes:
        for a, b in itertools.combinations(scene.objects, 2):
            assert a.distance(b) >= MIN_GAP
        for item in scene.objects:
            assert MIN_RADIUS <= item.radius <= MAX_RADIUS
            assert item.radius < item.x < IMAGE_SIZE - item.radius
            assert item.radius < item.y < IMAGE_SIZE - item.radius
        assert 190 <= scene.background < 250
    objects = [item for scene in scenes for item in scene.objects]
    assert {item.color for item in objects} == set(COLORS)
    assert {item.shape for item in objects} == set(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_render_draws_an_object_in_its_colour_at_its_place(color, shape):
    picture = np.asarray(render(Scene((SceneObject(color, shape, 30.0, 60.0, 10.0),), background=210)))
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    painted = (picture != 210).any(axis=2)
    assert {tuple(int(c) for c in pixel) for pixel in picture[painted]} == {COLORS[color]}
    assert tuple(picture[60, 30]) == COLORS[color]
    rows, columns = np.nonzero(painted)
    assert abs(columns.mean() - 30) < 1.5
    assert abs(rows.mean() - 60) < 3.5
    assert columns.max() - columns.min() <= 24
    assert rows.max() - rows.min() <= 24


FEW = {"train": 4, "val": 4, "test": 4}
KINDS: dict[str, tuple[Callable[..., Path], dict[str, Any], tuple[Any, ...]]] = {
    "vqa": (write_shapes, {"train_scenes": 20, "val_scenes": 10}, (0, 4, 4)),
    "nlvr2": (write_shapes_nlvr2, {"directories": 2, "directory_sets": 2, "test_sets": 3}, (0, 2, 1, 1)),
    "captions": (write_shapes_captions, {"scenes": FEW}, (0, FEW)),
}
"""What writes a data set, arguments of a small one, and defaults that write a tiny one."""

DIGESTS = {
    "shapes-vqa-1": "3be311e04ba8e4b4",
    "shapes-nlvr2-1": "37b76144b6ebeaf3",
    "shapes-captions-1": "0d21de7d2a0c565e",
}
"""Digests of the texts and labels of a small data set, by the folder of the bundled one."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_write_the_same_bytes(kind, tmp_path):
    """Where the digest fails, raise the number in `BUNDLED`, or users read stale data, and put the digest above."""
    write, arguments, _ = KINDS[kind]
    one, again = (contents(write(tmp_path / name, **arguments)) for name in ("one", "again"))
    assert one == again
    other = contents(write(str(tmp_path / "other"), seed=1, **arguments))
    assert not set(other.values()) & set(one.values())
    texts = [content for name, content in one.items() if ".json" in name]
    assert blake2b(b"".join(texts)).hexdigest()[:16] == DIGESTS[BUNDLED[kind].folder]


@pytest.mark.parametrize(
    ("kind", "name", "arguments"),
    [
        *((kind, "seed", {"seed": -1}) for kind in KINDS),
        ("vqa", "train_scenes", {"train_scenes": 0}),
        ("nlvr2", "directories", {"directories": 1}),
        ("captions", "test", {"scenes": {**FEW, "test": 3}}),
    ],
)
def test_numbers_out_of_range_are_named(kind, name, arguments, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}`"):
        KINDS[kind][0](tmp_path / "data", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["nlvr2", "captions"])
def test_root_is_written_once(kind, tmp_path, monkeypatch):
    write, _, tiny = KINDS[kind]
    monkeypatch.setattr(write, "__defaults__", tiny)
    first = bundled_root(kind, tmp_path)
    assert first.name == BUNDLED[kind].folder
    monkeypatch.setattr(write, "__defaults__", (-1, *tiny[1:]))  # which would raise
    assert bundled_root(kind, tmp_path) == first
