"""Captions of pre-training, each judged again from the words and the scene alone by `holds`."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.pretrain.captions import CAPTION_FAMILIES, patch_owners
from das_gym.shapes.scene_language import RELATIONS
from das_gym.shapes.scenes import COLORS, IMAGE_SIZE, Scene, SceneObject, render, sample_scene


def holds(sentence: str, scene: Scene) -> bool:
    objects = scene.objects
    if m := re.fullmatch(r"the (\w+) is (\w+)\.", sentence):
        return [o.color for o in objects if o.shape == m[1]] == [m[2]]
    if m := re.fullmatch(r"the (\w+) object is a (\w+)\.", sentence):
        return [o.shape for o in objects if o.color == m[1]] == [m[2]]
    if m := re.fullmatch(r"there is a (\w+ \w+)\.", sentence):
        return any(o.name == m[1] for o in objects)
    if m := re.fullmatch(r"there are (\d) (.+)\.", sentence):
        return sum(m[2] == f"{o.color} objects" or m[2].startswith(o.shape) for o in objects) == int(m[1])
    by_name = {o.name: o for o in objects}
    if m := re.fullmatch(r"the (\w+ \w+) is (left of|right of|above|below) the (\w+ \w+)\.", sentence):
        return RELATIONS[m[2]](by_name[m[1]], by_name[m[3]]) > 0
    m = re.fullmatch(r"nearest to the (\w+ \w+) is a (\w+ \w+)\.", sentence)
    assert m, sentence
    anchor = by_name[m[1]]
    return min((o for o in objects if o is not anchor), key=anchor.distance).name == m[2]


@pytest.mark.parametrize("family", CAPTION_FAMILIES)
def test_captions_are_true_their_variants_false_and_their_objects_named(family: str):
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(300)]
    drawn = [(scene, CAPTION_FAMILIES[family](rng, scene)) for scene in scenes]
    captions = [(scene, caption) for scene, caption in drawn if caption is not None]
    assert len(captions) >= 100
    for scene, caption in captions:
        assert holds(caption.text, scene), (caption, scene)
        assert not holds(caption.false_text, scene), (caption, scene)
        named = [scene.objects[i] for i in (*caption.subjects, *caption.others)]
        assert all(o.color in caption.text or o.shape in caption.text for o in named)


def test_patch_owners_by_hand():
    square = SceneObject("red", "square", 24.0, 24.0, 8 / 0.85)  # covers pixels 16..32: patch (1, 1) of 16 pixels
    other = SceneObject("blue", "square", 72.0, 56.0, 8 / 0.85)  # pixels 64..80, 48..64: patch row 3, column 4
    expected = np.full((6, 6), -1)
    expected[1, 1], expected[3, 4] = 0, 1
    owners = patch_owners(Scene((square, other), background=200), patch_size=16, min_share=0.5)
    np.testing.assert_array_equal(owners.reshape(6, 6), expected)


@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_patch_owners_are_in_the_image(patch_size: int):
    scene = sample_scene(np.random.default_rng(1))
    picture, side = np.asarray(render(scene)), IMAGE_SIZE // patch_size
    for patch, owner in enumerate(patch_owners(scene, patch_size, min_share=0.01)):
        if owner >= 0:
            row, column = (patch_size * number for number in divmod(patch, side))
            tile = picture[row : row + patch_size, column : column + patch_size]
            assert (tile == COLORS[scene.objects[owner].color]).all(axis=2).any()
