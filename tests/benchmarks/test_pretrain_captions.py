"""Captions of pre-training, each judged again from the words and the scene alone by `holds`."""

import re

import numpy as np
import pytest

from benchmarks.pretrain.texts import CAPTION_FAMILIES
from das_gym.shapes.scenes import Scene, sample_scene
from das_gym.shapes.vqa import RELATIONS


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
def test_captions_are_true_their_variants_false_and_their_objects_named(family):
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
