"""Text: documents, their windows, and the task."""

import itertools
import json
from pathlib import Path

import gymnasium
import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from torch.nn import functional as F  # noqa: N812

from das_gym.data.splits import Splits
from das_gym.engine.scores import Scores
from das_gym.models.transformers.inputs import load_folder_tokenizer
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits
from das_gym.problem.problem import build_problem
from das_gym.problem.rewards import find_reward
from das_gym.tables.build import build_table
from das_gym.tasks.text import Document, TextTask, load_documents, prefix_tokens, split_into_sections, split_into_windows
from tests.models.transformers import tiny

TEXTS = [f"document {number} " + "word " * number for number in range(20)]


def write_lines(path: Path, texts: list[str], column: str = "text") -> None:
    path.write_text("\n".join(json.dumps({column: text}) for text in texts), encoding="utf-8")


def texts_of(splits: object) -> list[list[str]]:
    return [[d.text for d in getattr(splits, name)] for name in ("train", "reward", "test")]


def test_a_tenth_of_documents_each_is_for_reward_and_test_wherever_they_come_from(tmp_path):
    folders = [tmp_path / name for name in ("lines", "tables", "files")]
    for folder in folders:
        folder.mkdir()
    write_lines(folders[0] / "all.jsonl", TEXTS)
    parquet.write_table(pyarrow.table({"text": TEXTS[::-1]}), folders[1] / "data-00000-of-00001.parquet")
    for number, text in enumerate(TEXTS):
        (folders[2] / f"file{number}.txt").write_text(text, encoding="utf-8")
    found = [texts_of(load_documents(folder)) for folder in folders]
    assert [len(part) for part in found[0]] == [16, 2, 2]
    assert sorted(itertools.chain(*found[0])) == sorted(TEXTS)
    assert [sorted(part) for part in found[0]] == [sorted(part) for part in found[1]] == [sorted(part) for part in found[2]]


def test_files_and_folders_named_like_parts_are_parts(tmp_path):
    for name, texts in (("train", TEXTS[:10]), ("validation", TEXTS[10:12]), ("test", TEXTS[12:])):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "0.jsonl", texts)
    assert texts_of(load_documents(tmp_path)) == [TEXTS[:10], TEXTS[10:12], TEXTS[12:]]


def test_texts_of_a_later_part_are_left_out_of_earlier_ones(tmp_path):
    for name, texts in (("train", TEXTS[:10]), ("val", TEXTS[9:12]), ("test", TEXTS[11:])):
        write_lines(tmp_path / f"{name}.jsonl", texts)
    splits = load_documents(tmp_path)
    assert texts_of(splits) == [TEXTS[:9], TEXTS[9:11], TEXTS[11:]]
    assert len(splits.left_out) == 2


def test_one_file_is_read_alone_with_another_column_and_equal_texts_stay_together(tmp_path):
    write_lines(tmp_path / "a.jsonl", TEXTS[:5] * 2, column="content")
    (tmp_path / "b.txt").write_text("other", encoding="utf-8")
    parts = texts_of(load_documents(tmp_path / "a.jsonl", column="content"))
    assert sorted(itertools.chain(*parts)) == sorted(TEXTS[:5] * 2)
    assert not set(parts[0]) & set(parts[1])
    assert not set(parts[1]) & set(parts[2])


def test_a_single_text_is_cut_at_blank_lines(tmp_path):
    text = "\n\n".join(f"paragraph {number} " + "word " * 100 for number in range(50))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    parts = texts_of(load_documents(tmp_path))
    assert all(parts)
    assert "".join(d.text for d in split_into_sections(Document("book", text))) == text
    assert min(len(section) for part in parts for section in part) >= 100


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}', r"line 2: wrong type of `text`"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', r"line 2 has no `text`"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"', r"line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"line 1: `text` is not valid Unicode"),
        ("a.txt", b"caf\xe9", r"a\.txt is not a text file in UTF-8"),
        ("a.parquet", b"PAR1", r"a\.parquet cannot be read as a parquet file"),
        ("a.txt", b"short", r"too little text to divide"),
        ("a.pdf", b"", r"no data in a known format: got none of them"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_documents(tmp_path)


def test_damaged_lines_are_skipped_where_wanted(tmp_path):
    write_lines(tmp_path / "a.jsonl", TEXTS)
    with (tmp_path / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"text": 3}\n{"text": "  "}')
    splits = load_documents(tmp_path, on_bad_example="skip")
    assert sorted(itertools.chain(*texts_of(splits))) == sorted(TEXTS)
    assert len(splits.left_out) == 1  # a blank document is no damage


def test_files_of_several_kinds_and_missing_columns_are_errors(tmp_path):
    write_lines(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "b.txt").write_text("other", encoding="utf-8")
    with pytest.raises(ValueError, match=r"\.jsonl and \.txt"):
        load_documents(tmp_path)
    parquet.write_table(pyarrow.table({"content": TEXTS}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="column `text`"):
        load_documents(tmp_path / "c.parquet")
    with pytest.raises(FileNotFoundError, match="data_root"):
        load_documents(tmp_path / "none")


CONTEXT = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny Llama in float64, and text."""
    model = tiny.save("llama", tmp_path_factory.mktemp("llama"), torch.float64)
    return model, tiny.text_folder(tmp_path_factory.mktemp("text"))


def test_windows_have_equal_lengths_and_one_document_each(folders):
    tokenizer = load_folder_tokenizer(folders[0])
    documents = [Document("a", "red " * 25), Document("b", "is it blue </s>"), Document("c", "r")]
    whole = [tokenizer(d.text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for d in documents]
    size = len(whole[0]) // 3
    windows = list(split_into_windows(documents, tokenizer, size))
    assert [w.key for w in windows[:3]] == ["a:0", f"a:{size}", f"a:{2 * size}"]
    assert [len(w.ids) for w in windows[:3]] == [size] * 3
    assert [token for w in windows[:3] for token in w.ids] == whole[0][: 3 * size]
    assert [list(w.ids) for w in windows[3:]] == [whole[1]]  # one token of c predicts nothing
    assert tokenizer.eos_token_id not in windows[3].ids  # a mark in a text is text


def test_windows_begin_with_the_tokens_that_begin_every_text(folders):
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_folder_tokenizer(folders[0])
    marks = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    assert prefix_tokens(tokenizer) == (1,)
    windows = split_into_windows([Document("a", "red blue is it true")], tokenizer, 4)
    tokens = tokenizer("red blue is it true", add_special_tokens=False)["input_ids"]
    assert [w.ids for w in windows] == [(1, *tokens[n : n + 3]) for n in range(0, len(tokens) - 2, 3)]
    with pytest.raises(ValueError, match="`context` is too small"):
        split_into_windows([], tokenizer, 1)


def test_losses_accuracy_and_divergence_are_those_of_plain_transformers(folders):
    from transformers import AutoModelForCausalLM

    model, data = folders
    settings = {"checkpoint": str(model), "data_root": str(data), "context": CONTEXT, "reward": "neg_kl"}
    env = gymnasium.make("DAS-VLM-Text-v0", **settings, reward_examples=7, skip_num=1, statistics="depth").unwrapped
    mask = np.array([0, 1, 0, 0], np.int8)
    _, reward, _, _, info = env.step((env.reset(), mask)[1])
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).requires_grad_(False)
    examples = env.scorer.fixed_examples

    def logits() -> list[torch.Tensor]:
        return [plain(input_ids=torch.tensor([e.ids]), use_cache=False).logits[0, :-1] for e in examples]

    full = logits()
    del plain.model.layers[1]
    subnet = logits()
    labels = [torch.tensor(e.ids[1:]) for e in examples]
    losses = [F.cross_entropy(x, y) for x, y in zip(subnet, labels, strict=True)]
    right = [(x.argmax(-1) == y).double().mean() for x, y in zip(subnet, labels, strict=True)]
    pairs = [(f.log_softmax(-1), x.log_softmax(-1)) for f, x in zip(full, subnet, strict=True)]
    apart = [(f.exp() * (f - x)).sum(-1).mean() for f, x in pairs]
    assert info["loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-12)
    assert info["metric"] == pytest.approx(float(torch.stack(right).mean()), abs=1e-12)
    assert reward == pytest.approx(-float(torch.stack(apart).mean()), abs=1e-12)
    assert info["macs"] > 0


def test_default_reward_is_the_ratio_of_perplexities_of_the_model_and_of_a_table(folders, tmp_path):
    model, data = folders
    settings = {"checkpoint": str(model), "data_root": str(data), "context": CONTEXT, "reward_examples": 5}
    live = gymnasium.make("DAS-VLM-Text-v0", **settings, skip_num=None, statistics="depth").unwrapped
    table, _ = build_table(live.scorer.problem, "DAS-VLM-Text-v0", reward_examples=5, test_examples=4)
    table.save(tmp_path / "table.npz")
    tabular = gymnasium.make("DAS-VLM-Text-Tabular-v0", table=str(tmp_path / "table.npz"), skip_num=None).unwrapped
    full = live.reset()[1]
    for bits in ([0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1]):
        mask = np.array(bits, np.int8)
        _, reward, _, _, info = live.step((live.reset(), mask)[1])
        assert reward == pytest.approx(min(np.exp(full["loss"] - info["loss"]), 2), abs=1e-12)
        assert tabular.step((tabular.reset(), mask)[1])[1] == pytest.approx(reward, abs=1e-5)
    assert find_reward("perplexity_ratio").compute(Scores(np.array([np.inf]), np.zeros(1), full_loss=3.0)) == 0


def test_summary_has_the_perplexity_and_predictions_the_losses(folders):
    model, data = folders
    splits: Splits = load_splits(
        ProblemConfig(model="VLM", task="text", checkpoint=str(model), data_root=str(data), context=CONTEXT)
    )
    task = TextTask(None)  # type: ignore[arg-type]
    examples = splits.reward[:3]
    count = sum(len(e.ids) - 1 for e in examples)
    uniform = torch.zeros(count, 512)
    losses = task.losses(uniform, task.targets(examples))
    np.testing.assert_allclose(losses, np.log(512), rtol=1e-6)
    summary = task.summary(examples, losses.numpy(), task.metrics(uniform, task.targets(examples)).numpy())
    assert summary["perplexity"] == pytest.approx(512, rel=1e-5)
    assert [p["tokens"] for p in task.predictions(examples, uniform)] == [len(e.ids) - 1 for e in examples]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_root": None}, "`data_root` is missing"),
        ({"context": 1}, "`context` is too small"),
        ({"context": 1000}, r"A text has \d+ tokens, expected at most 512"),
        ({"task": "answering"}, "`context` is not supported by the task answering"),
    ],
)
def test_settings_that_do_not_fit_are_named(folders, tmp_path, changes, message):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"{n} red" * 500}) for n in range(3)), encoding="utf-8")
    settings = {"model": "VLM", "task": "text", "checkpoint": str(folders[0]), "data_root": str(tmp_path), "context": 8}
    with pytest.raises(ValueError, match=message):
        build_problem(ProblemConfig(**settings | changes))
