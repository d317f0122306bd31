"""Captions of pre-training, each judged again from the words and the scene alone by `holds`."""

import re

import numpy as np
import pytest

from benchmarks.pretrain.texts import CAPTION_FAMILIES
from das_gym.shapes.scenes import Scene, sample_scene
from tests.shapes.judging import objects_named, related, the_one


def holds(sentence: str, scene: Scene) -> bool:
    objects = scene.objects
    if m := re.fullmatch(r"the (\w+) is (\w+)\.", sentence):
        return [o.color for o in objects if o.shape == m[1]] == [m[2]]
    if m := re.fullmatch(r"the (\w+) object is a (\w+)\.", sentence):
        return [o.shape for o in objects if o.color == m[1]] == [m[2]]
    if m := re.fullmatch(r"there is a (\w+ \w+)\.", sentence):
        return any(o.name == m[1] for o in objects)
    if m := re.fullmatch(r"there are (\d) (.+)\.", sentence):
        return len(objects_named(m[2], scene)) == int(m[1])
    if m := re.fullmatch(r"the (\w+ \w+) is (left of|right of|above|below) the (\w+ \w+)\.", sentence):
        return related(m[1], m[2], m[3], scene)
    m = re.fullmatch(r"nearest to the (\w+ \w+) is a (\w+ \w+)\.", sentence)
    assert m, sentence
    anchor = the_one([o for o in objects if o.name == m[1]])
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
