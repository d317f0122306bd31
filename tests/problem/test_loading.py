import dataclasses
import json
import os
import shutil
import warnings
from dataclasses import replace

import pyarrow
import pytest
import torch
from pyarrow import parquet

import das_gym.problem.problem
from das_gym.models.checkpoints import save_checkpoint
from das_gym.models.tensor_files import read_tensors, write_safetensors, write_tensors
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits, new_head, pick_device, task_class
from das_gym.problem.problem import build_problem, load_problem
from das_gym.registration import ASSETS, MODELS
from tests.small_world import load_supernet
from tests.tasks.answering.making import llava_folder


def test_load_backbone_freezes_the_model():
    vlp = load_backbone(ProblemConfig()).vlp
    vlp.train()
    assert not any(module.training for module in vlp.modules())
    trained = {name for name, p in vlp.named_parameters() if p.requires_grad}
    assert trained == set(vlp.tunable_state())
    assert not any("encoder" in name or "attention" in name or "feed_in" in name for name in trained)


def test_build_problem_rejects_data_with_other_answers(tiny_kwargs, shapes_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(shapes_folder, other)
    for path in other.glob("*annotations.json"):
        known = json.loads(path.read_text())
        for entry in known["annotations"]:
            entry["multiple_choice_answer"] = "otter" if entry["question_id"] % 2 else "heron"
            for answer in entry["answers"]:
                answer["answer"] = entry["multiple_choice_answer"]
        path.write_text(json.dumps(known))
    with pytest.raises(ValueError, match=r"fewer than half.*das-adapt supernet with meter_vqa '?data_root="):
        build_problem(ProblemConfig(**{**tiny_kwargs, "data_root": str(other)}))


def test_load_backbone_needs_the_models_tokenizer(mini_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(mini_folder / name, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        load_backbone(ProblemConfig(checkpoint=str(tmp_path)))
    assert load_backbone(ProblemConfig(checkpoint=str(tmp_path), tokenizer=str(mini_folder))).base
    with pytest.raises(ValueError, match="pads with token 0, not 1"):
        load_backbone(ProblemConfig(tokenizer=str(ASSETS / "vilt_mini")))


def test_load_splits_share_no_image(tiny_kwargs):
    splits = load_splits(ProblemConfig(**tiny_kwargs))
    images = [{example.image.key for example in part} for part in (splits.train, splits.reward, splits.test)]
    assert all(images)
    assert not images[0] & images[1]
    assert not images[1] & images[2]
    assert not images[0] & images[2]


def test_load_problem_names_what_is_no_configuration():
    with pytest.raises(TypeError, match="`config` is not a ProblemConfig: got 'METER'"):
        load_problem("METER")  # type: ignore[arg-type]


def test_build_problem_checks_the_supernet_first(monkeypatch, tmp_path, tiny_kwargs):
    monkeypatch.setattr(das_gym.problem.problem, "load_splits", lambda config: pytest.fail("data were read"))
    with pytest.raises(ValueError, match="was trained for task 'vqa', not 'nlvr2'"):
        build_problem(ProblemConfig(task="nlvr2", supernet=tiny_kwargs["supernet"]))
    monkeypatch.setitem(MODELS, "METER", replace(MODELS["METER"], assets=tmp_path))
    with pytest.raises(ValueError, match=r"das-adapt supernet with meter_nlvr2 image_size=64"):
        build_problem(ProblemConfig(task="nlvr2", image_size=64))


def test_load_supernet_warns_of_other_data(shapes_folder, tiny_kwargs):
    config = ProblemConfig(data_root=str(shapes_folder))
    advice = r"by the bundled supernet.* `das-adapt supernet with meter_vqa '?data_root="
    with pytest.warns(UserWarning, match=advice):
        load_supernet(config, load_splits(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_supernet(ProblemConfig(**tiny_kwargs), load_splits(config))


def test_load_splits_warns_of_bad_examples(shapes_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(shapes_folder, tmp_path / "data")
    path = next(folder.glob("*val2014_questions.json"))
    whole = json.loads(path.read_text())
    whole["questions"][0]["question_id"] = str(whole["questions"][0]["question_id"])
    path.write_text(json.dumps(whole))
    with pytest.warns(UserWarning, match=r"^2 bad entries were left out; the first of them:\n.*\n.* has no question"):
        load_splits(ProblemConfig(data_root=str(folder), on_bad_example="skip"))


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "retrieval"])
def test_data_of_another_format_name_who_reads_them(task, tmp_path):
    root = llava_folder(tmp_path / "mine", train=9)
    with pytest.raises(FileNotFoundError, match=r"like LLaVA's conversations, which the named config vlm_answering reads"):
        load_splits(ProblemConfig(task=task, data_root=str(root)))


def test_tables_that_the_task_reads_name_no_other_one(tmp_path):
    parquet.write_table(pyarrow.table({"content": ["one two"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="column `text`") as caught:
        load_splits(ProblemConfig(model="VLM", task="text", data_root=str(tmp_path)))
    assert "vlm_answering" not in str(caught.value)


def test_data_of_another_task_name_the_config_of_the_same_model(shapes_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="like VQAv2, which the named config vilt_vqa reads"):
        load_splits(ProblemConfig(model="ViLT", task="nlvr2", data_root=str(shapes_folder)))
    with pytest.raises(FileNotFoundError, match=r"got an empty folder$"):
        load_splits(ProblemConfig(data_root=str(tmp_path)))
    (tmp_path / "dataset_coco.json").touch()
    with pytest.raises(ValueError, match="which the named config meter_retrieval or vilt_retrieval reads"):
        load_splits(ProblemConfig(model="VLM", task="answering", data_root=str(tmp_path)))


def test_devices_that_cannot_be_used_name_the_reason():
    with pytest.raises(ValueError, match=r"`device` cannot be used here: got 'cud' \(Expected one of"):
        pick_device("cud")


def test_checkpoints_of_another_kind_name_a_config(mini_folder):
    with pytest.raises(ValueError, match=r"a model of transformers \(smolvlm\).*vlm_answering"):
        load_backbone(ProblemConfig(checkpoint=str(ASSETS / "smolvlm_mini")))
    with pytest.raises(ValueError, match=r"holds a meter, .* meter_vqa"):
        load_backbone(ProblemConfig(model="VLM", task="answering", checkpoint=str(mini_folder)))


def test_load_backbone_warns_of_missing_and_unknown_parameters(mini_folder, tmp_path):
    folder = shutil.copytree(mini_folder, tmp_path / "model")
    file = read_tensors(folder / "model.safetensors")
    del file.tensors["text_pooler.weight"], file.tensors["token_types.weight"]
    write_tensors(folder / "model.safetensors", {**file.tensors, "gamma": torch.ones(2)}, file.config)
    with pytest.warns(UserWarning, match=r"it lacks token_types\.\*, text_pooler\.\*.* gamma"):
        load_backbone(ProblemConfig(checkpoint=str(folder)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("vqa", "vqa_classifier"),
        ("nlvr2", "nlvr2_classifier"),
        ("retrieval", "rank_output"),
    ],
)
def test_new_head_starts_from_the_checkpoint(task, head, mini_folder, tmp_path):
    bare = load_backbone(ProblemConfig())
    vlp, labels = bare.vlp, ("red", "blue", "two")
    tuned = task_class(task)(bare.processor, labels).build_head(vlp.feature_size, vlp.head_size)
    tensors = {name.removeprefix("0.") if task == "retrieval" else name: t for name, t in tuned.state_dict().items()}
    tokenizer = {path.name: path.read_text() for path in mini_folder.glob("token*.json")}
    save_checkpoint(tmp_path / "model", vlp, {head: tensors}, files=tokenizer)
    backbone = load_backbone(ProblemConfig(checkpoint=str(tmp_path / "model")))
    begun = new_head(backbone, task_class(task)(backbone.processor, labels))
    assert all(torch.equal(tensor, tuned.state_dict()[name]) for name, tensor in begun.state_dict().items())
    if task == "vqa":
        with pytest.warns(UserWarning, match=r"vqa_classifier: 3.weight has shape \(3, 128\), expected \(2, 128\)"):
            new_head(backbone, task_class(task)(backbone.processor, labels[:2]))


def test_load_problem_loads_a_checkpoint_again_that_changed_in_place(mini_folder, tiny_kwargs, tmp_path):
    folder = shutil.copytree(mini_folder, tmp_path / "model")
    config = ProblemConfig(**tiny_kwargs, checkpoint=str(folder))
    kept, times = load_problem(config), folder.stat()
    assert load_problem(dataclasses.replace(config)) is kept
    changed = {name: tensor + 1 for name, tensor in read_tensors(folder).tensors.items()}
    write_safetensors(folder / "model.safetensors", changed, {})
    (folder / "missing").symlink_to("nowhere")  # as a partly downloaded snapshot has
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match="fingerprint"):
        load_problem(config)
