"""Linear skip adapters as a setting of a problem: scores, costs, the cache folder."""

import os
from dataclasses import replace

import numpy as np
import pytest

from das_gym.files import CACHE_VARIABLE, cache_folder
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import build_problem
from das_gym.problem.skip_adapters import MAX_CACHED_BYTES, calibration_examples, skip_adapter_tensors
from das_gym.tables.build import problem_hashes

LINEAR = ProblemConfig(model="VLM", task="answering", skip="linear", calibration_examples=64)


@pytest.fixture(scope="module")
def linear_problem(tmp_path_factory, module_patch):
    module_patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
    return build_problem(LINEAR)


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_adapters_repair_what_deletion_breaks(linear_problem):
    masks = np.eye(12, dtype=bool)[[0, 1, 9]]
    examples = linear_problem.splits.reward[:16]
    deleted = build_problem(replace(LINEAR, skip="delete")).evaluator.losses(masks, examples)
    assert (linear_problem.evaluator.losses(masks, examples) < deleted).all()


def test_costs_count_the_adapters(linear_problem):
    width, costs = 80, linear_problem.costs
    assert costs.skip_parameters.tolist() == [width * width + width] * 12
    tokens = costs.skip_macs[0] / width**2
    assert tokens == int(tokens) > 36  # the image's and the question's
    mask = np.arange(12) < 3
    assert costs.macs_full - costs.macs(mask) == (costs.layer_macs - costs.skip_macs)[:3].sum()


def test_a_second_problem_reads_the_cache(linear_problem, tmp_path):
    again = build_problem(LINEAR)
    first, second = skip_adapter_tensors(linear_problem.vlp), skip_adapter_tensors(again.vlp)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    low_rank = build_problem(replace(LINEAR, skip_rank=5))
    assert low_rank.costs.skip_parameters[0] == 2 * 5 * 80 + 80
    again.vlp.put_skip_adapters(skip_adapter_tensors(low_rank.vlp))  # as a worker does
    masks, examples = np.eye(12, dtype=bool)[:2], again.splits.reward[:4]
    again.evaluator.forget()
    np.testing.assert_array_equal(again.evaluator.losses(masks, examples), low_rank.evaluator.losses(masks, examples))


def test_calibration_never_sees_reward_or_test_examples(linear_problem):
    used = {e.key for e in calibration_examples(linear_problem.evaluator, linear_problem.splits.train, 16)}
    assert len(used) == 16
    assert not used & {e.key for split in ("reward", "test") for e in getattr(linear_problem.splits, split)}


def test_a_cache_that_cannot_be_written_loses_no_fit(linear_problem, tmp_path, monkeypatch):
    (tmp_path / "skip_adapters").write_text("a file, where the cache needs a folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    fitted = skip_adapter_tensors(build_problem(LINEAR).vlp)
    assert all((fitted[name] == value).all() for name, value in skip_adapter_tensors(linear_problem.vlp).items())


def test_the_cache_keeps_what_was_used_last(linear_problem, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    old = [tmp_path / "skip_adapters" / f"{age}.safetensors" for age in range(3)]
    old[0].parent.mkdir()
    for age, file in enumerate(old):
        file.touch()
        os.truncate(file, MAX_CACHED_BYTES // 2)  # without using the disk
        os.utime(file, (1e9 - age, 1e9 - age))
    build_problem(LINEAR)
    assert [file.exists() for file in old] == [True, True, False]


def test_incomplete_weights_are_rejected(linear_problem):
    tensors = skip_adapter_tensors(linear_problem.vlp)
    last = linear_problem.layer_names[-1]
    with pytest.raises(ValueError, match=f"incomplete: got none for {last}"):
        linear_problem.vlp.put_skip_adapters({name: each for name, each in tensors.items() if not name.startswith(last)})


def test_no_train_split(linear_problem):
    with pytest.raises(ValueError, match="skip=linear"):
        calibration_examples(linear_problem.evaluator, (), 16)


def test_the_cache_tells_ways_of_reading_apart(linear_problem):
    known = set((cache_folder() / "skip_adapters").iterdir())
    build_problem(replace(LINEAR, max_text_length=500))  # of the same examples
    assert len(set((cache_folder() / "skip_adapters").iterdir()) - known) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"model": "METER", "task": "vqa"},
        {"model": "METER", "task": "vqa", "skip": "delete"},
        {"supernet": "mine.safetensors"},
        {"skip": "linaer"},
        {"skip_rank": 0},
    ],
)
def test_settings_that_cannot_be(given):
    with pytest.raises(ValueError, match="skip"):
        ProblemConfig(**{"model": "VLM", "task": "answering", "skip": "linear", **given})


def test_a_table_of_deleted_layers_is_another_one(linear_problem):
    examples = linear_problem.splits.reward[:2]
    deleted = build_problem(replace(LINEAR, skip="delete"))
    hashes = [problem_hashes(each, examples, examples) for each in (linear_problem, deleted)]
    assert {name for name in hashes[0] if hashes[0][name] != hashes[1][name]} == {"supernet"}
