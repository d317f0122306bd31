"""What is left after a deletion, trained: the loss by hand, what trains, what stays, and going on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from das_gym.adapt.shrink import recovery
from das_gym.adapt.shrink.recovery import (
    Recovery,
    RecoveryConfig,
    Teacher,
    add_lora,
    answer_features,
    answer_vectors,
    ask_for_all,
    decoder_path,
    hidden_distance,
    lora_places,
    merge_lora,
    places_read,
    recovery_loss,
    rows_used,
)
from das_gym.adapt.training import Trainer, decay
from torch.nn import functional as F  # noqa: N812

from das_gym.models.transformers.cutting import cut
from das_gym.models.transformers.features import projector_of
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stand_ins import layers_left
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import Problem, load_problem
from tests.adapt.shrink.conftest import MASK
from tests.models.transformers import tiny

SHORT = {"steps": 12, "batch_size": 4, "learning_rate": 3e-3, "save_every": 5}


def recover(problem: Problem, checkpoint: Path | None = None, log: Any = None, **settings: Any) -> VLM:
    student = cut(problem.vlp, MASK)
    config = RecoveryConfig(**{**SHORT, **settings})
    Recovery(student, problem.vlp, problem.task, problem.splits.train, config, checkpoint).run(log)
    return student


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def features_of(vlm: VLM, problem: Problem) -> torch.Tensor:
    with torch.no_grad():
        return answer_features(vlm, problem.task, problem.task.open_ended(problem.splits.test))


def divergence(student: VLM, problem: Problem) -> float:
    """From the whole model, on examples that nothing trained on."""
    examples = problem.task.open_ended(problem.splits.test)
    logits, wanted = (vlm.own_head()(features_of(vlm, problem)) for vlm in (student, problem.vlp))
    return float(problem.task.divergences(logits, wanted, problem.task.targets(examples)).mean())


def test_the_loss_by_hand(problem_of: Callable[[str], Problem]):
    problem = problem_of("llava")
    task, student = problem.task, cut(problem.vlp, MASK)
    examples = task.open_ended(problem.splits.train[:3])
    teacher = Teacher(problem.vlp, task, examples, 2)
    config = RecoveryConfig(distillation=2.0, cross_entropy=0.5, hidden="mse", hidden_weight=3.0)
    with torch.no_grad():
        found = recovery_loss(student, teacher, task, examples, config)
        expected = {"divergence": 0.0, "cross_entropy": 0.0}
        distances = []
        for prompt in task.pairs(examples):  # one by one, each with the model's own forward
            encoding = task.processor.encode(prompt, pixels=True)
            labels = encoding.ids[encoding.answer :]
            mine, its = (
                vlm.run([encoding], whole=True).logits[0, encoding.answer - 1 : -1] for vlm in (student, problem.vlp)
            )
            expected["divergence"] += (
                float(F.kl_div(mine.log_softmax(-1), its.softmax(-1), reduction="sum")) / len(labels) / 3
            )
            expected["cross_entropy"] += float(F.cross_entropy(mine, labels)) / 3
            hidden = [vlm.run([encoding]).last_hidden_state[0, encoding.answer - 1 : -1] for vlm in (student, problem.vlp)]
            distances.append((hidden[0] - hidden[1]) ** 2)
    expected["hidden"] = float(torch.cat(distances).mean())
    assert {name: float(value) for name, value in found.items() if name != "loss"} == pytest.approx(expected, rel=1e-4)
    weighted = 2 * expected["divergence"] + 0.5 * expected["cross_entropy"] + 3 * expected["hidden"]
    assert float(found["loss"]) == pytest.approx(weighted, rel=1e-4)


@pytest.mark.parametrize("how", ["lora", "adapters"])
def test_hidden_vectors_of_every_layer(problem_of: Callable[[str], Problem], how: str):
    """Layers 1 and 3 of four are gone: layer 0 should give what layer 2 reads, or, with an adapter between, what it gave."""
    problem = problem_of("llava")
    whole, task, student = problem.vlp, problem.task, cut(problem.vlp, MASK)
    examples = task.open_ended(problem.splits.train[:2])
    read = places_read(whole, layers_left(whole, student), how == "adapters")
    assert read == ([0, 3] if how == "adapters" else [1, 3])
    with torch.no_grad():
        teacher = Teacher(whole, task, examples, 2, read)
        mine, its = answer_vectors(student, task, examples, (0, 1)), teacher.vectors(examples)
        config = RecoveryConfig(recover=how, hidden="mse", hidden_at="layers")  # type: ignore[arg-type]
        found = recovery_loss(student, teacher, task, examples, config)
    assert mine.shape == its.shape == (mine.shape[0], 3, tiny.WIDTH)
    assert torch.equal(mine[:, 0], answer_features(student, task, examples))
    assert float(found["hidden"]) == pytest.approx(float(((mine - its) ** 2).mean()), rel=1e-5)
    assert torch.equal(mine[:, 1], its[:, 1]) == (how == "adapters")  # nothing in front of the first layer has gone


def test_hidden_distances():
    given, wanted = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    assert float(hidden_distance(given, wanted, "cosine")) == pytest.approx(0.5)  # 0 and 1
    assert float(hidden_distance(given, wanted, "mse")) == pytest.approx((1 + 0 + 4 + 4) / 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("how", ["lora", "full"])
def test_the_student_learns_and_its_teacher_stays(problem_of: Callable[[str], Problem], name: str, how: str):
    problem = problem_of(name)
    before = state_of(problem.vlp.model)
    student = recover(problem, recover=how, steps=20, cross_entropy=0.0)
    assert divergence(student, problem) < 0.7 * divergence(cut(problem.vlp, MASK), problem)
    after = state_of(problem.vlp.model)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    fresh = state_of(cut(problem.vlp, MASK).model)
    mine = state_of(student.model)
    assert mine.keys() == fresh.keys()  # nothing is left of LoRA
    changed = {key for key, value in fresh.items() if not torch.equal(value, mine[key])}
    places = (decoder_path(student), *projector_of(student.model))
    assert changed
    assert all(key.startswith(places) for key in changed)
    assert all(any(key.startswith(place) for key in changed) for place in places)
    assert not any(p.requires_grad for p in student.model.parameters())


def test_merging_changes_no_output(problem_of: Callable[[str], Problem]):
    problem = problem_of("llava")
    student = cut(problem.vlp, MASK)
    torch.manual_seed(0)
    for parameter in add_lora(student, rank=4, alpha=8):
        torch.nn.init.normal_(parameter, std=0.1)
    before = features_of(student, problem)
    merge_lora(student.model)
    torch.testing.assert_close(features_of(student, problem), before, atol=1e-4, rtol=1e-4)
    assert float((before - features_of(cut(problem.vlp, MASK), problem)).abs().max()) > 1e-2


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
def test_lora_leaves_routers_alone(name: str):
    """PhiMoE's and Llama 4's are subclasses of `nn.Linear` that give tuples; Falcon's linear layers are subclasses, too."""
    vlm = VLM(tiny.made(ROUTED[name])[0])
    names = lora_places(vlm)
    assert any(each.endswith(("q_proj", "query_key_value")) for each in names)
    assert not any(each.endswith("router") for each in names)
    tokens = torch.arange(3, 11)[None]
    with torch.no_grad():
        before = vlm.model(input_ids=tokens).logits
        for parameter in add_lora(vlm, rank=4, alpha=8):
            torch.nn.init.normal_(parameter, std=0.1)
        changed = vlm.model(input_ids=tokens).logits
        merge_lora(vlm.model)
        merged = vlm.model(input_ids=tokens).logits
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(merged, changed, atol=1e-4, rtol=1e-4)


def test_a_stopped_training_goes_on_as_if_undisturbed(
    problem_of: Callable[[str], Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    problem = problem_of("llava")
    undisturbed = state_of(recover(problem).model)
    original = Trainer.take_step

    def stopping(self: Trainer, *arguments: Any) -> Any:
        if self.step == 7:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "take_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        recover(problem, tmp_path / "recovery.pt")
    monkeypatch.setattr(Trainer, "take_step", original)
    resumed = state_of(recover(problem, tmp_path / "recovery.pt").model)
    assert all(torch.equal(value, resumed[key]) for key, value in undisturbed.items())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lora", "full", "adapters"])
def test_weights_of_16_bits_learn_small_steps(data: Path, tmp_path: Path, how: str):
    """A step of 1e-5 is lost in bfloat16: what trains has 32 bits, and the model its own type again at the end."""
    source = tiny.save("llava", tmp_path / "llava", torch.bfloat16)
    given = {"checkpoint": str(source), "data_root": str(data), "device": "cpu"}
    problem = load_problem(ProblemConfig(model="VLM", task="answering", **given))
    seen: set[torch.dtype] = set()
    student = cut(problem.vlp, MASK)
    config = RecoveryConfig(recover=how, steps=2, batch_size=2, hidden="cosine")  # type: ignore[arg-type]
    recovery = Recovery(student, problem.vlp, problem.task, problem.splits.train, config)
    prepare = recovery._prepare
    recovery._prepare = lambda dtype: [seen.add(p.dtype) or p for p in prepare(dtype)]  # type: ignore[method-assign, func-returns-value]
    recovery.run()
    assert seen == {torch.float32}
    assert {p.dtype for p in student.model.parameters()} == {torch.bfloat16}


def test_what_a_large_teacher_says_is_kept_in_16_bits(problem_of: Callable[[str], Problem], monkeypatch: pytest.MonkeyPatch):
    problem = problem_of("llava")
    examples = problem.task.open_ended(problem.splits.train[:3])
    whole = Teacher(problem.vlp, problem.task, examples, 2).vectors(examples)
    assert whole.dtype == torch.float32
    monkeypatch.setattr(recovery, "LARGE_TEACHER", 0)
    teacher = Teacher(problem.vlp, problem.task, examples, 2)
    assert teacher.vectors(examples).dtype == torch.float16
    torch.testing.assert_close(teacher.vectors(examples).float(), whole, rtol=1e-3, atol=1e-3)
    assert teacher.logits(teacher.vectors(examples)[:, 0]).dtype == torch.float32


def test_a_teacher_is_asked_once_for_all_masks_only_where_no_mask_decides_what_is_asked(
    problem_of: Callable[[str], Problem],
):
    problem = problem_of("llava")
    given = (problem.vlp, problem.task, problem.splits.train)
    for config in (RecoveryConfig(recover="none"), RecoveryConfig(hidden="mse", hidden_at="layers")):
        assert ask_for_all(*given, config) is None
    config = RecoveryConfig(steps=1, batch_size=3, seed=4)
    examples = problem.task.open_ended([problem.splits.train[row] for row in rows_used(12, config)])
    assert len(ask_for_all(*given, config).vectors(examples)) > 3  # type: ignore[union-attr]
    assert rows_used(12, config) != rows_used(12, RecoveryConfig(steps=1, batch_size=3, seed=5))


def test_none_trains_nothing(problem_of: Callable[[str], Problem]):
    problem = problem_of("llava")
    mine, fresh = state_of(recover(problem, recover="none").model), state_of(cut(problem.vlp, MASK).model)
    assert all(torch.equal(value, mine[key]) for key, value in fresh.items())


@pytest.mark.parametrize("name", [name for name in tiny.WORKING if name not in tiny.TEXT_ALONE])
def test_every_type_has_a_projector(name: str):
    model, _ = tiny.make(name)
    found = projector_of(model)
    assert found
    inside = {id(p) for module in found.values() for p in module.parameters()}
    assert inside
    assert not inside & {id(p) for p in model.get_decoder().parameters()}


def test_schedule():
    factors = [decay(step, 100, 0.03, schedule="cosine") for step in range(100)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[3] == 1.0
    assert factors[3 + 97 // 2] == pytest.approx(0.5, abs=0.02)
    assert factors[-1] < 0.001


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "`steps` is out of range"),
        ({"rank": 0}, "`rank` is out of range"),
        ({"distillation": -1.0}, "`distillation` is out of range"),
        ({"distillation": 0.0, "cross_entropy": 0.0}, "there is nothing to learn; give one a weight"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str):
    with pytest.raises(ValueError, match=text):
        RecoveryConfig(**settings)


def test_the_rate_falls_with_the_root_of_the_width_and_is_lower_where_all_trains():
    assert RecoveryConfig().rate(80) == 1e-3
    assert RecoveryConfig(recover="adapters").rate(80) == 3e-3
    assert RecoveryConfig().rate(4096) == pytest.approx(1.4e-4, rel=0.01)
    assert RecoveryConfig(recover="full").rate(320) == pytest.approx(5e-5)
    assert RecoveryConfig(recover="full", learning_rate=0.1).rate(320) == 0.1
