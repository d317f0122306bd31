"""Recovery after a deletion: the loss worked out by hand, what trains, what remains, and resuming."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from das_gym.adapt.methods import METHODS
from das_gym.adapt.methods.base import Method, make_method
from das_gym.adapt.methods.lora import LoRA, inject_lora, linear_names, merge_lora
from das_gym.adapt.shrinking import settings as recovery_settings
from das_gym.adapt.shrinking.recovery import (
    TARGET_TOKENS,
    Teacher,
    answer_states,
    insert_trainable,
    make_teacher,
    recover_student,
    recovery_loss,
    temporarily_merged,
    trainable_parts,
    training_rows,
)
from das_gym.adapt.shrinking.settings import RecoveryConfig
from torch.nn import functional as F  # noqa: N812

from das_gym.files import read_json, write_json
from das_gym.models.transformers.generation import generate_tokens
from das_gym.models.transformers.layer_removal import decoder_path, pruned_copy
from das_gym.models.transformers.loading import load_vlm
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.tower import find_projectors
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem, load_problem
from tests.adapt.conftest import MASK
from tests.fake_device import DEVICE, OTHER_DEVICE, two_devices
from tests.models.transformers import tiny

SHORT = {"steps": 12, "batch_size": 4, "learning_rate": 3e-3, "save_every": 5}


@contextmanager
def recovered(problem: Problem, checkpoint: Path | None = None, log: Any = None, **settings: Any) -> Iterator[VLM]:
    student, config = pruned_copy(problem.vlp, MASK), RecoveryConfig(**{**SHORT, **settings})
    trained = recover_student(student, problem, config, checkpoint, log=log)
    with temporarily_merged(student, problem.vlp, config, trained, checkpoint and checkpoint.parent):
        yield student


def recovered_state(problem: Problem, checkpoint: Path | None = None, **settings: Any) -> dict[str, torch.Tensor]:
    with recovered(problem, checkpoint, **settings) as student:
        return state_of(student.model)


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def states_of(vlm: VLM, problem: Problem) -> torch.Tensor:
    with torch.no_grad():
        return answer_states(vlm, problem.task, problem.task.open_ended(problem.splits.test))


def divergence(student: VLM, problem: Problem, wanted: torch.Tensor | None = None) -> float:
    """From the full model, whose states may be given, on examples that nothing trained on."""
    examples = problem.task.open_ended(problem.splits.test)
    wanted = states_of(problem.vlp, problem) if wanted is None else wanted
    logits, expected = (problem.vlp.language_head()(states) for states in (states_of(student, problem), wanted))
    return float(problem.task.divergences(logits, expected, problem.task.targets(examples)).mean())


def test_recovery_loss_by_hand(problem_of):
    problem = problem_of("llava")
    task, student = problem.task, pruned_copy(problem.vlp, MASK)
    examples = task.open_ended(problem.splits.train[:3])
    teacher = Teacher(problem.vlp, task, examples, 2)
    config = RecoveryConfig(distillation=2.0, cross_entropy=0.5)
    with torch.no_grad():
        found = recovery_loss(student, teacher, task, examples, config)
        expected = {"divergence": 0.0, "cross_entropy": 0.0}
        for prompt in task.pairs(examples):  # one by one, each with the model's own forward
            encoding = task.processor.encode(prompt, pixels=True)
            labels = encoding.ids[encoding.answer :]
            mine, its = (
                vlm.run([encoding], with_head=True).logits[0, encoding.answer - 1 : -1] for vlm in (student, problem.vlp)
            )
            divergence = F.kl_div(mine.log_softmax(-1), its.softmax(-1), reduction="sum")
            expected["divergence"] += float(divergence) / len(labels) / 3
            expected["cross_entropy"] += float(F.cross_entropy(mine, labels)) / 3
    assert {name: float(value) for name, value in found.items() if name != "loss"} == pytest.approx(expected, rel=1e-4)
    weighted = 2 * expected["divergence"] + 0.5 * expected["cross_entropy"]
    assert float(found["loss"]) == pytest.approx(weighted, rel=1e-4)


def test_a_resumed_recovery_runs_the_full_model_for_the_steps_that_are_left(problem_of, tmp_path):
    problem = problem_of("llava")
    examples = problem.task.open_ended(problem.splits.train[:12])
    whole, partly = (Teacher(problem.vlp, problem.task, examples, 4) for _ in range(2))
    students = [pruned_copy(problem.vlp, MASK) for _ in range(2)]
    config = RecoveryConfig(**{**SHORT, "save_every": 100})
    batches: list[int] = []
    layer = problem.vlp.stack.layers[0]
    hook = layer.register_forward_hook(lambda *_: batches.append(1))
    try:
        whole.prepare(examples)
        assert len(batches) == 2  # the first one is always computed
        assert torch.equal(partly.states(examples[9:10]), whole.states(examples[9:10]))
        assert len(batches) == 3
        counts = []
        for student in students:
            batches.clear()
            recover_student(student, problem, config, tmp_path / "recovery.pt")
            counts.append(len(batches))
    finally:
        hook.remove()
    assert counts[1] <= 2 < counts[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_recovery_trains_the_student_and_not_its_teacher(problem_of, name, method):
    problem = problem_of(name)
    before = state_of(problem.vlp.model)
    fresh, shrunk = state_of(pruned_copy(problem.vlp, MASK).model), divergence(pruned_copy(problem.vlp, MASK), problem)
    expected = states_of(problem.vlp, problem)
    with recovered(problem, recover=method, steps=20, cross_entropy=0.0) as student:
        mine, places = state_of(student.model), (decoder_path(student), *find_projectors(student.model))
        assert divergence(student, problem, expected) < 0.7 * shrunk
        assert not any(p.requires_grad for p in student.model.parameters())
    after = state_of(problem.vlp.model)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert mine.keys() == fresh.keys()  # nothing of LoRA remains
    changed = {key for key, value in fresh.items() if not torch.equal(value, mine[key])}
    assert changed
    assert all(key.startswith(places) for key in changed)
    assert all(any(key.startswith(place) for key in changed) for place in places)


def test_recovery_with_a_method_of_your_own(problem_of, monkeypatch):
    class Norms(Method):
        title = "norms"
        trains_weights = True

        def insert(self, vlp: Any) -> list[torch.nn.Parameter]:
            return [p for name, p in vlp.stack.layers.named_parameters() if "norm" in name]

    monkeypatch.setitem(METHODS, "norms", Norms)
    problem = problem_of("llava")
    fresh = state_of(pruned_copy(problem.vlp, MASK).model)
    changed = [key for key, value in recovered_state(problem, recover="norms").items() if not torch.equal(value, fresh[key])]
    assert changed
    assert all("norm" in key for key in changed)


@pytest.mark.parametrize("name", ["head", "adapter", "parallel", "bitfit"])
def test_check_recovery_rejects_methods_that_cannot_recover(problem_of, name):
    vlm = problem_of("llava").vlp
    before = dict(vlm.named_parameters())
    with pytest.raises(ValueError, match=r"cannot recover|no biases"):
        make_method(name).check_recovery(vlm, trainable_parts(vlm))
    assert all(p is before[key] for key, p in vlm.named_parameters())


ROUTED = {
    "phimoe": lambda: tiny.llava_of(t.PhimoeConfig(**tiny.text(num_local_experts=4, num_experts_per_tok=2))),
    "llama4": lambda: tiny.llava_of(
        t.Llama4TextConfig(**tiny.text(num_local_experts=2, intermediate_size_mlp=48, interleave_moe_layer_step=2))
    ),
    "falcon": lambda: (
        t.FalconForCausalLM(
            t.FalconConfig(vocab_size=512, hidden_size=tiny.WIDTH, num_hidden_layers=2, num_attention_heads=4)
        ),
        tiny.tokenizer(),
    ),
}


@pytest.mark.parametrize("name", ROUTED)
def test_lora_leaves_routers_alone(name):
    """PhiMoE's and Llama 4's subclass `nn.Linear` and return tuples; Falcon's linear layers are subclasses, too."""
    vlm = VLM(tiny.made(ROUTED[name])[0])
    names = linear_names(trainable_parts(vlm))
    assert any(each.endswith(("q_proj", "query_key_value")) for each in names)
    assert not any(each.endswith("router") for each in names)
    tokens = torch.arange(3, 11)[None]
    with torch.no_grad():
        before = vlm.model(input_ids=tokens).logits
        for parameter in inject_lora(vlm.model, names, rank=4):
            torch.nn.init.normal_(parameter, std=0.1)
        changed = vlm.model(input_ids=tokens).logits
        merge_lora(vlm.model)
        merged = vlm.model(input_ids=tokens).logits
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(merged, changed, atol=1e-4, rtol=1e-4)


class FirstParameter(Method):
    """Trains the parameter that names a model's dtype."""

    title = "first parameter"
    trains_weights = True

    def insert(self, vlp: Any) -> list[torch.nn.Parameter]:
        return [next(vlp.model.parameters())]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "adapters", "first"])
def test_recovery_of_16_bits_keeps_small_steps(data, tmp_path, method, monkeypatch):
    """A step of 1e-5 is lost in bfloat16: what trains has 32 bits, and the model its own type again at the end."""
    monkeypatch.setitem(METHODS, "first", FirstParameter)
    source = tiny.save("llava", tmp_path / "llava", torch.bfloat16)
    given = {"checkpoint": str(source), "data_root": str(data), "device": "cpu"}
    problem = load_problem(ProblemConfig(model="VLM", task="answering", **given))
    short = {"recover": method, "steps": 2, "batch_size": 2, "save_every": 1}
    found = recovered_state(problem, tmp_path / "recovery.pt", **short)
    trained = torch.load(tmp_path / "recovery.pt", weights_only=True)["parameters"]
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in found.values()} == {torch.bfloat16}


def test_teacher_runs_on_the_examples_of_the_training(problem_of):
    problem = problem_of("llava")
    given = (problem.vlp, problem.task, problem.splits.train)
    assert make_teacher(*given, RecoveryConfig(recover="none")) is None
    config = RecoveryConfig(steps=1, batch_size=3, seed=4)
    examples = problem.task.open_ended([problem.splits.train[row] for row in training_rows(12, config)])
    assert len(make_teacher(*given, config).states(examples)) > 3  # type: ignore[union-attr]
    assert training_rows(12, config) != training_rows(12, RecoveryConfig(steps=1, batch_size=3, seed=5))


def test_recover_none_trains_nothing(problem_of):
    problem = problem_of("llava")
    mine, fresh = recovered_state(problem, recover="none"), state_of(pruned_copy(problem.vlp, MASK).model)
    assert all(torch.equal(value, mine[key]) for key, value in fresh.items())


@pytest.mark.parametrize("name", [name for name in tiny.WORKING if name not in tiny.TEXT_ALONE])
def test_projector_is_found_for_every_type(name):
    model, _ = tiny.make(name)
    found = find_projectors(model)
    assert found
    inside = {id(p) for module in found.values() for p in module.parameters()}
    assert inside
    assert not inside & {id(p) for p in model.get_decoder().parameters()}


def test_recovery_config_names_a_wrong_setting():
    with pytest.raises(ValueError, match="`cross_entropy`"):
        RecoveryConfig(distillation=0.0, cross_entropy=0.0)
    with pytest.raises(ValueError, match="lora"):
        RecoveryConfig(recover="lorra")


def test_peak_rate_falls_with_the_root_of_the_width():
    assert RecoveryConfig().peak_rate(80) == 1e-3
    assert RecoveryConfig(recover="adapters").peak_rate(80) == 3e-3
    assert RecoveryConfig().peak_rate(4096) == pytest.approx(1.4e-4, rel=0.01)
    assert RecoveryConfig(recover="full").peak_rate(320) == pytest.approx(5e-5)
    assert RecoveryConfig(recover="full", learning_rate=0.1).peak_rate(320) == 0.1


@pytest.mark.parametrize("method", ["lora", "adapters"])
def test_merged_changes_shared_weights_within_its_block_alone(problem_of, tmp_path, method):
    """There is no second copy of them, and a process that is killed in the block leaves no file but the checkpoint."""
    problem, checkpoint = problem_of("llava"), tmp_path / "recovery.pt"
    before, full = state_of(problem.vlp), {id(p) for p in problem.vlp.parameters()}

    def stop_within() -> None:
        with recovered(problem, checkpoint, recover=method) as student:
            assert list(tmp_path.iterdir()) == [checkpoint]
            linear = [p for name, p in student.stack.layers.named_parameters() if "proj" in name]
            assert all(id(p) in full for p in linear)
            changed = [name for name, p in problem.vlp.named_parameters() if not torch.equal(p, before[name])]
            assert len(changed) == (0 if method == "adapters" else len(linear) + 2)  # and those of the projector
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_within()
    assert all(torch.equal(p, before[name]) for name, p in problem.vlp.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "adapters"])
def test_recovery_on_two_devices(problem_of, method):
    """Layers stay on the devices that `device_map` chose, and new parameters are on the device of their layer."""
    # In float64: AdamW divides gradients by their size, and those of one feature of the projector are as small as rounding.
    config = replace(problem_of("llava").backbone.origin.config, dtype="float64")
    settings = {"recover": method, "steps": 2}
    expected = recovered_state(load_problem(config), **settings)
    with two_devices():
        problem = load_problem(replace(config, device_map="auto"))
        with recovered(problem, **settings) as student:
            for layer, device in zip(student.stack.layers, (DEVICE, OTHER_DEVICE), strict=True):
                assert {str(p.device) for p in layer.parameters()} == {device}
            found = {name: value.cpu() for name, value in state_of(student.model).items()}
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"micro_batch_size": 3}, {"micro_batch_size": 1, "gradient_checkpointing": True}])
def test_micro_batches_train_the_same_model(problem_of, settings):
    expected = recovered_state(problem_of("llava"), steps=3)
    found = recovered_state(problem_of("llava"), steps=3, **settings)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_images_that_a_worker_reads_train_the_same_bits(problem_of):
    expected = recovered_state(problem_of("llava"), steps=3)
    found = recovered_state(problem_of("llava"), steps=3, micro_batch_size=4, dataloader_num_workers=1)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_lora_leaves_out_the_layer_that_mambas_kernel_reads(tmp_path):
    sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": tiny.WIDTH, "num_hidden_layers": 4, "state_size": 8}
    config = t.MambaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    vlm = load_vlm(tiny.save_made(lambda: (t.MambaForCausalLM(config), tiny.tokenizer()), tmp_path))
    student = pruned_copy(vlm, MASK)
    assert insert_trainable(student, vlm, LoRA())
    assert not any("out_proj.lora" in name for name, _ in student.named_parameters())


def test_recovery_on_the_full_models_answers(problem_of, tmp_path):
    """The reference answers are not read: the same model comes out without them. An answer that was cut has no end."""
    problem = problem_of("llava")
    task, train = problem.task, problem.splits.train
    processor: Any = task.processor
    config = RecoveryConfig(**{**SHORT, "steps": 2, "targets": "teacher"})
    asked = task.open_ended([train[row] for row in training_rows(len(train), config)])
    alone = [replace(prompt, answer=None) for prompt in task.pairs(asked)]
    found = generate_tokens(problem.vlp, processor, alone, "", 8, limit=TARGET_TOKENS)
    said = {
        example.key: processor.decode(tokens).removesuffix("\ufffd") for example, tokens in zip(asked, found, strict=True)
    }
    cut = [len(tokens) == TARGET_TOKENS for tokens in found]
    assert any(cut)
    assert all(said.values())
    teacher = make_teacher(problem.vlp, task, train, config, tmp_path / "answers.json")
    assert teacher is not None
    answered = teacher.with_answers(asked)
    assert [example.answer for example in answered] == list(said.values())
    last = [int(processor.encode(prompt).ids[-1]) for prompt in task.pairs(answered)]
    assert [token not in processor.ends for token in last] == cut
    record = read_json(tmp_path / "answers.json")
    assert record["answers"] == {str(row): tokens for row, tokens in enumerate(found)}
    write_json(tmp_path / "answers.json", {**record, "answers": {**record["answers"], "0": found[1]}})
    again = make_teacher(problem.vlp, task, train, config, tmp_path / "answers.json")
    assert again is not None
    assert again.with_answers(asked)[0].answer == answered[1].answer
    states = []
    for examples in (train, [replace(e, answer="" if e.key in said else e.answer) for e in train]):
        student = pruned_copy(problem.vlp, MASK)
        smaller = copy.copy(problem)
        smaller.splits = replace(problem.splits, train=examples)
        trained = recover_student(student, smaller, config)
        states.append([p.detach().clone() for p in trained])
    assert all(torch.equal(mine, its) for mine, its in zip(*states, strict=True))


def test_default_steps_are_fewer_for_a_large_model_on_a_cpu(problem_of, monkeypatch):
    vlm: Any = problem_of("llava").vlp
    assert RecoveryConfig().for_model(vlm).steps == RecoveryConfig().num_steps == 800
    monkeypatch.setattr(recovery_settings, "LARGE_MODEL_PARAMETERS", 10)
    assert RecoveryConfig().for_model(vlm).steps == 100
    assert RecoveryConfig(steps=7).for_model(vlm).steps == 7
