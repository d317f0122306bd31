import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from das_gym.adapt import load_subnet, save
from das_gym.adapt.evaluate import evaluation_main
from das_gym.adapt.finetuning import new_subnet
from das_gym.adapt.finished_runs import RECORD, SUBNET_FILE, EvaluateSettings, ExportSettings, PredictSettings

from das_gym.data.splits import Splits
from das_gym.files import read_json, write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_splits
from das_gym.registration import register_metric

MASK = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1], dtype=bool)


@pytest.fixture(scope="module")
def config(tiny_kwargs) -> ProblemConfig:
    return ProblemConfig(**tiny_kwargs)


@pytest.fixture(scope="module")
def splits(config) -> Splits:
    return load_splits(config)


@pytest.fixture(scope="module")
def subnet(config, splits) -> AdaptedModel:
    return new_subnet(config, MASK)


@pytest.fixture
def folder(subnet, tmp_path) -> Path:
    return save(subnet, tmp_path / "mine").parent


@torch.inference_mode()
def logits(model: AdaptedModel, splits: Splits) -> torch.Tensor:
    model.head.eval()
    task = model.task
    return model.head(task.group_features(model.backbone.vlp(task.processor(task.pairs(splits.test[:3])))))


def test_load_subnet_returns_what_was_saved(subnet, splits, folder):
    for path in (folder, str(folder / SUBNET_FILE), folder / RECORD):
        again = load_subnet(path)
        np.testing.assert_array_equal(again.backbone.vlp.pruned_mask, MASK)
        assert again.task.labels == subnet.task.labels
        assert torch.equal(logits(again, splits), logits(subnet, splits))
        assert again.backbone.origin.config == subnet.backbone.origin.config


def test_evaluate_names_missing_data_before_it_loads_the_model(folder):
    (folder / SUBNET_FILE).unlink()  # loading would raise
    record = read_json(folder / RECORD)
    write_json(folder / RECORD, {**record, "problem": {**record["problem"], "data_root": "/missing"}})
    with pytest.raises(FileNotFoundError, match="`data_root` does not exist: got /missing"):
        EvaluateSettings(run=str(folder))
    with pytest.raises(FileNotFoundError, match="data_root"):
        EvaluateSettings(run=str(folder), data_root="/other")


def test_evaluate_rejects_a_run_that_is_not_finished(tmp_path):
    write_json(tmp_path / "config.json", {"seed": 1})  # as Sacred writes it
    with pytest.raises(FileNotFoundError, match="`run` is not a finished run"):
        EvaluateSettings(run=str(tmp_path))


@pytest.mark.parametrize("content", [{}, []])
def test_evaluate_names_a_damaged_record_of_shrink(tmp_path, content):
    write_json(tmp_path / "shrink.json", content)
    with pytest.raises(ValueError, match=r"shrink\.json is damaged"):
        EvaluateSettings(run=str(tmp_path))


@pytest.mark.parametrize(("settings", "others"), [(EvaluateSettings, {}), (PredictSettings, {"split": "val2014"})])
def test_an_unwritable_out_is_named_before_the_model_is_loaded(folder, settings, others):
    with pytest.raises(ValueError, match="`out` is not writable: got /proc/x"):
        settings(run=str(folder), out="/proc/x", **others)


@pytest.mark.usefixtures("own_metrics")
def test_evaluate_rejects_a_metric_of_answers_in_words_before_it_scores(folder, monkeypatch):
    register_metric("mine", lambda example, text: 1.0)
    monkeypatch.setattr("das_gym.adapt.evaluate.evaluate", lambda *_, **__: pytest.fail("it evaluated"))
    with pytest.raises(ValueError, match="`metric` scores answers in words, which vqa does not have: got mine"):
        evaluation_main(EvaluateSettings(run=str(folder), metric="mine", limit=2))


def test_evaluate_prints_a_ceiling_only_where_answers_are_missing(folder, config, tmp_path, capsys):
    evaluation_main(EvaluateSettings(run=str(folder), split="train", limit=2))  # the vocabulary is that of these answers
    assert "accuracy" in (printed := capsys.readouterr().out)
    assert "the other answers are not in the vocabulary" not in printed
    data = shutil.copytree(config.data_root, tmp_path / "data")
    path = data / "v2_mscoco_val2014_annotations.json"
    content = read_json(path)
    for annotation in content["annotations"][::2]:  # 40 of 79
        annotation["answers"] = [{**each, "answer": "zebra"} for each in annotation["answers"]]
    write_json(path, content)
    evaluation_main(EvaluateSettings(run=str(folder), split="test", data_root=str(data)))
    assert "at most 49.37 %: the other answers are not in the vocabulary" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "settings", "told"),
    [
        ("METER", {"dtype": "bfloat16"}, "`dtype` is not supported by METER: got bfloat16"),
        ("VLM", {"onnx": True}, "`onnx` is not supported for generative models: got VLM"),
    ],
)
def test_export_rejects_settings_of_other_models_before_it_loads_one(tmp_path, model, settings, told):
    write_json(tmp_path / RECORD, {"problem": {"model": model}})  # and no adapters
    with pytest.raises(ValueError, match=told):
        ExportSettings(run=str(tmp_path), out=str(tmp_path / "out"), **settings)


@pytest.mark.parametrize("change", [{"problem": 3}, {"plugins": 3}])
def test_load_subnet_names_a_damaged_record(folder, change):
    write_json(folder / RECORD, {**read_json(folder / RECORD), **change})
    with pytest.raises(ValueError, match=r"adapt\.json is damaged"):
        load_subnet(folder)


def test_load_subnet_rejects_a_supernet(random_supernet, folder):
    with pytest.raises(ValueError, match="holds a supernet, not a subnet"):
        load_subnet(random_supernet)
    shutil.copy(random_supernet, folder / SUBNET_FILE)
    with pytest.raises(ValueError, match="holds a supernet, not a subnet"):
        load_subnet(folder)


def test_load_subnet_names_a_missing_file(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"no adapt\.json or das\.json in"):
        load_subnet(tmp_path)
    with pytest.raises(FileNotFoundError, match="99 does not exist"):
        load_subnet(tmp_path / "99")
    (folder / SUBNET_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter\.safetensors in"):
        load_subnet(folder)


def test_save_rejects_a_supernet(folder, tiny_problem):
    with pytest.raises(ValueError, match="it is a supernet"):
        save(AdaptedModel(tiny_problem.backbone, tiny_problem.head, tiny_problem.task), folder)
