from pathlib import Path

import pytest

from benchmarks.bundled import answering_scores
from das_gym.shapes.vqa import write_shapes


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    """The questions on the first scenes of the bundled val2014: they do not depend on how many others there are."""
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train_scenes=60, val_scenes=40)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [None, "llava_mini"])
def test_answers_of_held_out_scenes_need_the_image(checkpoint, held_out):
    scores = answering_scores(checkpoint, 120, str(held_out))
    assert set(scores["prior"]) == {"all", "attribute", "existence", "count", "relation", "nearest"}
    assert scores["answers"]["all"] >= 0.85
    assert max(scores["empty images"]["all"], scores["prior"]["all"]) <= scores["answers"]["all"] - 0.25
