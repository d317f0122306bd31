"""Scores of the batches so far, for a search that is killed within a turn."""

import numpy as np
import pytest

from das_gym.engine.kept_sums import KeptSums


def test_a_killed_call_continues_to_the_bit(small_problem, tmp_path):
    evaluator = small_problem.evaluator.with_empty_caches()
    examples = small_problem.splits.reward[:10]
    masks = np.eye(6, dtype=bool)[:4]
    wanted = evaluator.with_empty_caches().evaluate(masks, examples)
    evaluator.kept_sums = KeptSums(tmp_path / "scoring.json", seconds=0)
    done: list[int] = []

    def kill(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(masks, examples, kill)
    assert done == [4, 4]
    again = small_problem.evaluator.with_empty_caches()
    again.kept_sums = KeptSums(tmp_path / "scoring.json", seconds=0)
    found = again.evaluate(masks, examples, done.append)
    assert done == [4, 4, 2]
    np.testing.assert_array_equal(found.losses, wanted.losses)
    np.testing.assert_array_equal(found.metrics, wanted.metrics)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", '{"call": 3}'])
def test_sums_of_another_call_and_damaged_ones_are_ignored(content, tmp_path):
    (tmp_path / "scoring.json").write_text(content)
    sums, examples = KeptSums(tmp_path / "scoring.json").begin(np.eye(3, dtype=bool), (), 4)
    assert (sums.shape, sums.any(), examples) == ((3, 3), False, 0)
