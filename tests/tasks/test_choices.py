"""Multiple choice: files, the task, and lm-evaluation-harness."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow
import pytest
import torch
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.subnets import load_transformers_model
from pyarrow import parquet

from das_gym.models.transformers import prune
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel
from das_gym.problem.problem import build_problem, load_problem
from das_gym.tasks.choices import load_choices
from tests.arrow_tables import jpeg
from tests.models.transformers import tiny
from tests.tasks.answering.making import draw, write, write_lines

OPTIONS = ["red", "green", "blue"]


def rows(count: int = 12, **changes: Any) -> list[dict[str, Any]]:
    return [{"question": f"what colour is {n}?", "options": OPTIONS, "answer": n % 3, **changes} for n in range(count)]


def of(splits: Any) -> list[Any]:
    return sorted([*splits.train, *splits.reward, *splits.test], key=lambda e: int(e.question.split()[-1].strip("?")))


@pytest.mark.parametrize(
    "row",
    [
        {"options": OPTIONS, "answer": 1},
        {"options": OPTIONS, "answer": "green"},
        {"options": OPTIONS, "answer": "B"},
        {"endings": OPTIONS, "label": "1"},
        {"choices": {"text": OPTIONS, "label": ["1", "2", "3"]}, "answerKey": "2"},
    ],
)
def test_answers_are_positions_labels_letters_or_texts(tmp_path, row):
    write_lines(tmp_path / "a.jsonl", [{"question": f"what colour is {n}?", **row} for n in range(5)])
    examples = of(load_choices(tmp_path))
    assert [e.answer for e in examples] == ["green"] * 5
    assert examples[0].options == tuple(OPTIONS)


def test_scienceqa_as_parquet_has_hints_images_and_subjects(tmp_path):
    image = {"bytes": jpeg(10), "path": None}
    for split, start in (("train", 0), ("validation", 6), ("test", 9)):
        table = [
            {
                "image": None if n % 2 else {**image, "bytes": jpeg(20 * n)},
                "question": f"what colour is {n}",
                "choices": OPTIONS,
            }
            | {"answer": n % 3, "hint": "It is bright." if n % 2 else "", "subject": "art"}
            for n in range(start, start + 3)
        ]
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / f"{split}-00000-of-00001.parquet")
    splits = load_choices(tmp_path)
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [3, 3, 3]
    assert [len(e.images) for e in splits.train] == [1, 0, 1]
    assert splits.train[1].question == "It is bright.\nwhat colour is 1"
    assert {e.kind for e in splits.train} == {"art"}
    assert splits.train[0].images[0].open().size == (24, 16)


def test_questions_about_one_image_stay_in_one_split(tmp_path):
    write(tmp_path / "all.json", [{**row, "image": f"{n // 4}.png"} for n, row in enumerate(rows(40))])
    draw(*(tmp_path / "images" / f"{n}.png" for n in range(10)))
    splits = load_choices(tmp_path)
    keys = [{e.images[0].key for e in part} for part in (splits.train, splits.reward, splits.test)]
    assert [len(part) for part in keys] == [8, 1, 1]
    assert not keys[0] & keys[1] | keys[1] & keys[2] | keys[0] & keys[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 3}, r"line 1: the answer is not among the options: got '3'"),
        ({"answer": None}, r"line 1 has no answer or answerKey or label"),
        ({"question": " "}, r"line 1: the question is empty"),
        ({"options": "red"}, r"line 1: the options are not a list"),
        ({"options": ["red", "red"], "answer": 0}, r"line 1: wrong `options`"),
        ({"options": ["red", 3], "answer": 0}, r"line 1: an option is empty"),
        ({"image": "none.png"}, r"none\.png does not exist"),
    ],
)
def test_damaged_rows_are_named_and_can_be_skipped(tmp_path, changes, message):
    write_lines(tmp_path / "a.jsonl", [{**rows(1)[0], **changes}, *rows(12)])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_choices(tmp_path)
    assert len(of(load_choices(tmp_path, on_bad_example="skip"))) == 12


def test_rows_that_are_no_objects_and_other_files_are_errors(tmp_path):
    write_lines(tmp_path / "a.jsonl", [*rows(3), 7])
    with pytest.raises(ValueError, match=r"line 4 has no question"):
        load_choices(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="known format"):
        load_choices(tmp_path)


QUESTIONS = ("how many circles are there?", "the square is", "what colour is the square?")
LONG_OPTIONS = (["0", "1 2", "blue is it true"], ["red", "blue green"], ["red green", "red green blue", "0"])


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    def folder(name: str) -> Path:
        return tiny.save(name, tmp_path_factory.mktemp(name) / name, torch.float64)

    return folder


@pytest.fixture(scope="module")
def settings(folder_of, tmp_path_factory) -> dict[str, Any]:
    """A tiny text model, and questions without images."""
    data = tmp_path_factory.mktemp("data")
    rows = [{"question": f"{n} {QUESTIONS[n % 3]}", "options": LONG_OPTIONS[n % 3], "answer": n % 2} for n in range(30)]
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


def test_loss_and_both_accuracies_are_those_of_the_harness(settings):
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


def test_options_share_the_question_and_one_option_is_scored_by_its_tokens(settings):
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


def test_images_are_asked_about_by_the_chat_template(folder_of, tmp_path):
    rows = [
        {"question": QUESTIONS[n % 3], "options": LONG_OPTIONS[n % 3], "answer": 0, "image": f"{n}.png"} for n in range(12)
    ]
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


def test_a_text_model_rejects_images_and_data_are_needed(settings, tmp_path):
    write(
        tmp_path / "all.json", [{"question": "a", "options": ["b", "c"], "answer": 0, "image": f"{n}.png"} for n in range(4)]
    )
    draw(*(tmp_path / f"{n}.png" for n in range(4)))
    with pytest.raises(ValueError, match="has an image, but the model reads only text"):
        build_problem(ProblemConfig(model="VLM", task="choices", **{**settings, "data_root": str(tmp_path)}))
    with pytest.raises(ValueError, match="`data_root` is missing"):
        build_problem(ProblemConfig(model="VLM", task="choices", checkpoint=settings["checkpoint"]))


lm_eval = pytest.importorskip("lm_eval", reason="the harness is no dependency: pip install lm-eval")

WORD_OPTIONS = ["red", "blue green", "is it true"]


@pytest.mark.slow
def test_the_harness_counts_the_same_right_answers(tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    source, folder, data = (tmp_path / name for name in ("llama", "smaller", "questions.jsonl"))
    tiny.save("llama", source)
    prune(AutoModelForCausalLM.from_pretrained(source), np.array([0, 1, 0, 0], bool)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    rows = [
        {"question": f"what colour is {n}?", "options": WORD_OPTIONS[n % 2 :] + WORD_OPTIONS[: n % 2], "answer": n % 3}
        for n in range(10)
    ]
    write_lines(data, rows)
    task: dict[str, Any] = {
        "task": "ten_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    model = HFLM(pretrained=str(folder), device="cpu", batch_size=1)
    results = lm_eval.simple_evaluate(model, tasks=[task], bootstrap_iters=0)["results"]["ten_questions"]
    subnet = load_transformers_model(folder, "choices", "cpu", trust_remote_code=False)
    splits = type(subnet.task).load_splits(data)
    found = evaluate(subnet, [*splits.train, *splits.reward, *splits.test], "")
    assert found.examples == 10
    assert found.numbers["acc"] == pytest.approx(results["acc,none"])
    assert found.numbers["acc_norm"] == pytest.approx(results["acc_norm,none"])
