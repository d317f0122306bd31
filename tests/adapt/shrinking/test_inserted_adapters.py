"""Adapters of pruned models: driven by masks, run by the code of the saved folder, and trained."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from das_gym.adapt.shrinking.recovery import answer_states, recover_student, temporarily_merged
from das_gym.adapt.shrinking.saving import save
from das_gym.adapt.shrinking.settings import RecoveryConfig
from das_gym.adapt.shrinking.verifying import Probes, check_logits, replay_logits, run_in_subprocess

from das_gym.files import read_json, write_json
from das_gym.models.adapters import Adapter
from das_gym.models.transformers.inserted_adapters import full_model_with_adapters, has_adapters, insert_into_pruned
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.loading import auto_class, load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.problem.problem import Problem
from tests.adapt.shrinking.test_recovery import divergence

MASKS = {"llava": (0, 1, 0, 1), "smolvlm": (1, 1, 0, 0), "qwen2_vl": (0, 0, 1, 1), "qwen3_vl": (1, 0)}
"""Removed layers between kept ones, and at either end, of models of different kinds; two of Qwen3-VL's are protected."""

MASK = np.array(MASKS["llava"], dtype=bool)


def with_random_adapters(full: VLM, mask: np.ndarray) -> VLM:
    smaller = pruned_copy(full, mask)
    torch.manual_seed(0)
    for parameter in insert_into_pruned(smaller, full, bottleneck=4, skip_bottleneck=6):
        torch.nn.init.normal_(parameter, std=0.2)
    smaller.freeze()
    return smaller


@torch.no_grad()
def logits_of(vlm: VLM, problem: Problem, examples: Any) -> torch.Tensor:
    return vlm.language_head()(answer_states(vlm, problem.task, examples))


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKS)
def test_saved_code_gives_logits_of_the_mask(problem_of, folder_of, tmp_path, name):
    """Two pieces of code that share nothing: adapters as a supernet has them, and as the folder brings them."""
    problem = problem_of(name)
    probes = Probes.from_examples(problem.vlp, problem.task, problem.splits.test)
    open_ended = problem.task.open_ended(problem.splits.test)
    examples = [e for p in probes.prompts for e in open_ended if problem.task.pairs([e])[0] == p]
    mask = np.array(MASKS[name], dtype=bool)
    smaller = with_random_adapters(problem.vlp, mask)
    wanted = torch.cat(replay_logits(full_model_with_adapters(problem.vlp, smaller, mask), probes, mask))
    torch.testing.assert_close(logits_of(smaller, problem, examples), wanted, atol=1e-4, rtol=1e-4)
    save(smaller.model, tmp_path, folder_of(name), folder_of(name), torch.float32)
    loaded = auto_class(problem.vlp.model.config).from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded).__name__ == f"{type(problem.vlp.model).__name__}WithAdapters"
    again = VLM(loaded.eval(), capabilities=problem.vlp.capabilities)
    torch.testing.assert_close(logits_of(again, problem, examples), wanted, atol=1e-4, rtol=1e-4)
    assert not has_adapters(problem.vlp.model)


@pytest.mark.parametrize("auto", [t.AutoModelForImageTextToText, t.AutoModel, t.LlavaForConditionalGeneration])
def test_saved_folder_does_not_load_without_its_code(problem_of, folder_of, tmp_path, auto):
    """Without adapters, it would be another model."""
    source = folder_of("llava")
    save(with_random_adapters(problem_of("llava").vlp, MASK).model, tmp_path / "out", source, source, torch.float32)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        auto.from_pretrained(tmp_path / "out")


def test_pruned_copy_runs_its_own_adapters(problem_of):
    problem = problem_of("llava")
    smaller, examples = with_random_adapters(problem.vlp, MASK), problem.task.open_ended(problem.splits.test)
    twin = VLM(copy.deepcopy(smaller.model), capabilities=smaller.capabilities)
    before = logits_of(smaller, problem, examples)
    for module in smaller.model.modules():
        if isinstance(module, Adapter):
            module.up.weight.data.zero_()
    assert torch.equal(logits_of(twin, problem, examples), before)
    assert not torch.equal(logits_of(smaller, problem, examples), before)


def test_adapters_alone_learn(problem_of):
    problem = problem_of("llava")
    student, unchanged = pruned_copy(problem.vlp, MASK), divergence(pruned_copy(problem.vlp, MASK), problem)
    before = {name: p.clone() for name, p in student.model.named_parameters()}
    config = RecoveryConfig("adapters", steps=20, batch_size=4, learning_rate=3e-3, cross_entropy=0.0)
    trained = recover_student(student, problem, config)
    with temporarily_merged(student, problem.vlp, config, trained):
        after = dict(student.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert sum(p.numel() for p in trained) == sum(
        p.numel() for name, p in after.items() if "adapter" in name and ".norm." not in name
    )
    assert divergence(student, problem) < 0.8 * unchanged
    assert not any(p.requires_grad for p in after.values())


@pytest.mark.slow
def test_layers_without_a_place_are_rejected(problem_of):
    problem = problem_of("lfm2_vl")
    with pytest.raises(ValueError, match="for adapters"):
        insert_into_pruned(pruned_copy(problem.vlp, MASK), problem.vlp, 4, 6)


def test_a_folder_with_adapters_is_evaluated_but_not_searched(problem_of, folder_of, tmp_path):
    problem = problem_of("llava")
    save(with_random_adapters(problem.vlp, MASK).model, tmp_path, *[folder_of("llava")] * 2, torch.float32)
    for trusted in (True, False):
        with pytest.raises(ValueError, match="`recover=adapters`"):
            load_vlm(tmp_path, trust_remote_code=trusted)
    vlm = load_vlm(tmp_path, trust_remote_code=True, only_runs=True)
    assert not vlm.capabilities.protected
    check_logits(vlm, np.zeros(2, bool), Probes.from_examples(vlm, problem.task, problem.splits.test))


@pytest.mark.slow
def test_saved_folder_runs_no_code_of_its_source(problem_of, folder_of, tmp_path):
    """Our code in it needs trust_remote_code=True; the source's was never trusted."""
    problem, canary = problem_of("llava"), tmp_path / "EXECUTED"
    source = Path(shutil.copytree(folder_of("llava"), tmp_path / "source"))
    (source / "custom_generate").mkdir()
    for file in ("modeling_das_adapters.py", "custom_generate/generate.py", "evil_code.py"):
        (source / file).write_text(f"open({str(canary)!r}, 'w').close()\n")
    for name in ("tokenizer_config.json", "processor_config.json"):
        brought = {"AutoTokenizer": ["evil_code.Evil", "evil_code.Evil"], "AutoProcessor": "evil_code.Evil"}
        write_json(source / name, {**read_json(source / name), "auto_map": brought})
    probes = Probes.from_examples(with_random_adapters(problem.vlp, MASK), problem.task, problem.splits.test, 1)
    save(probes.vlm.model, tmp_path / "out", source, source, torch.float32)
    assert run_in_subprocess(tmp_path / "out", probes.subprocess_input(True))["logits"]
    assert not canary.exists()
