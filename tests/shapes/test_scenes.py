"""Scenes: sampling, and the images of their objects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

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
def test_render_draws_an_object_in_its_colour_at_its_place(color: str, shape: str):
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
