from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from das_gym.adapt.evaluate import evaluate

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, build_problem, load_problem
from tests.models.transformers import tiny
from tests.tasks.answering.making import draw, write, write_lines

QUESTIONS = ("how many circles are there?", "the square is", "what colour is the square?")
OPTIONS = (["0", "1 2", "blue is it true"], ["red", "blue green"], ["red green", "red green blue", "0"])


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def folder(name: str) -> Path:
        return tiny.save(name, tmp_path_factory.mktemp(name) / name, torch.float64)

    return folder


@pytest.fixture(scope="module")
def settings(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny text model, and questions without images."""
    data = tmp_path_factory.mktemp("data")
    rows = [{"question": f"{n} {QUESTIONS[n % 3]}", "options": OPTIONS[n % 3], "answer": n % 2} for n in range(30)]
    write_lines(data / "all.jsonl", rows)
    return {"checkpoint": str(folder_of("llama")), "data_root": str(data)}


def harness(model: Any, tokenizer: Any, example: Any) -> np.ndarray:
    """Log-likelihoods of options as lm-evaluation-harness computes them."""
    asked = f"Question: {example.question}\nAnswer:" if example.question.endswith("?") else example.question
    found = []
    for option in example.options:
        before, whole = (tokenizer(text)["input_ids"] for text in (asked, f"{asked} {option}"))
        logits = model(input_ids=torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
        found.append(float(logits[range(len(before) - 1, len(whole) - 1), whole[len(before) :]].sum()))
    return np.array(found)


def test_loss_and_both_accuracies_are_those_of_the_harness(settings: dict[str, Any]):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    env = gymnasium.make("DAS-VLM-Choices-v0", **settings, reward_examples=6, skip_num=1, statistics="depth").unwrapped
    examples, mask = env.scorer.fixed_examples, np.array([0, 1, 0, 0], np.int8)
    _, reward, _, _, info = env.step((env.reset(), mask)[1])
    model = AutoModelForCausalLM.from_pretrained(settings["checkpoint"], dtype=torch.float64).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(settings["checkpoint"])
    full = [harness(model, tokenizer, e) for e in examples]
    del model.model.layers[1]
    model.config.use_cache = False
    subnet = [harness(model, tokenizer, e) for e in examples]
    rights = [e.options.index(e.answer) for e in examples]
    losses = [np.logaddexp.reduce(x) - x[right] for x, right in zip(subnet, rights, strict=True)]
    assert info["loss"] == pytest.approx(np.mean(losses), abs=1e-12)
    assert reward == pytest.approx(np.exp(-np.mean(losses)))
    assert info["metric"] == np.mean([x.argmax() == right for x, right in zip(subnet, rights, strict=True)])
    problem = env.scorer.problem
    found = evaluate(AdaptedModel(problem.backbone, problem.head, problem.task), examples, "")
    lengths = [[len(option) for option in e.options] for e in examples]
    normed = [(x / size).argmax() == right for x, size, right in zip(full, lengths, rights, strict=True)]
    assert found.numbers["acc_norm"] == np.mean(normed)
    for prediction, expected in zip(found.predictions, full, strict=True):
        np.testing.assert_allclose(prediction["log_likelihoods"], expected, atol=1e-12)


def test_options_share_the_question_and_one_option_is_scored_by_its_tokens(settings: dict[str, Any]):
    problem = load_problem(ProblemConfig(model="VLM", task="choices", **settings))
    task, examples = problem.task, problem.splits.train[:4]
    state = problem.vlp.gather_uncached(task.processor, task.pairs(examples))
    assert max(block.each for block in state.extras["blocks"]) > 1
    alone = task.open_ended(examples)
    losses = problem.evaluator.evaluate_each(np.zeros((1, 4), bool), alone).losses[0]
    own = [task.processor.tokenizer(f" {e.answer}", add_special_tokens=False)["input_ids"] for e in examples]
    likelihoods = [
        task.predictions([e], problem.head(problem.vlp.make_forward(task.processor, task.pairs([e]))())) for e in alone
    ]
    sums = [rows[0]["log_likelihoods"][0] for rows in likelihoods]
    np.testing.assert_allclose(losses, [-x / len(ids) for x, ids in zip(sums, own, strict=True)])
    assert task.generation_prompt(examples[0]) is None
    assert task.generation_prompt(alone[0]).ids == task.pairs(alone)[0].ids[: task.pairs(alone)[0].start]


def test_images_are_asked_about_by_the_chat_template(folder_of: Callable[[str], Path], tmp_path: Path):
    rows = [{"question": QUESTIONS[n % 3], "options": OPTIONS[n % 3], "answer": 0, "image": f"{n}.png"} for n in range(12)]
    write(tmp_path / "all.json", rows)
    draw(*(tmp_path / f"{n}.png" for n in range(12)))
    config = ProblemConfig(model="VLM", task="choices", checkpoint=str(folder_of("llava")), data_root=str(tmp_path))
    problem = build_problem(config)
    examples, task, vlm = problem.splits.train[:3], problem.task, problem.vlp
    scores = problem.evaluator.evaluate_each(np.zeros((1, len(vlm.layers)), bool), examples)
    for number, example in enumerate(examples):
        own = []
        for prompt in task.pairs([example]):
            encoding = task.processor.encode(prompt, pixels=True)
            logits = vlm.run([encoding], with_head=True).logits[0, encoding.answer - 1 : -1].log_softmax(-1)
            own.append(float(logits.gather(-1, encoding.ids[encoding.answer :, None]).sum()))
        assert scores.losses[0, number] == pytest.approx(np.logaddexp.reduce(own) - own[0], abs=1e-9)
        assert scores.metrics[0, number] == (np.argmax(own) == 0)


def test_a_text_model_rejects_images_and_data_are_needed(settings: dict[str, Any], tmp_path: Path):
    write(
        tmp_path / "all.json", [{"question": "a", "options": ["b", "c"], "answer": 0, "image": f"{n}.png"} for n in range(4)]
    )
    draw(*(tmp_path / f"{n}.png" for n in range(4)))
    with pytest.raises(ValueError, match="has an image, but the model reads only text"):
        build_problem(ProblemConfig(model="VLM", task="choices", **{**settings, "data_root": str(tmp_path)}))
    with pytest.raises(ValueError, match="`data_root` is missing"):
        build_problem(ProblemConfig(model="VLM", task="choices", checkpoint=settings["checkpoint"]))
