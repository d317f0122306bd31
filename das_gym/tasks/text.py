"""Language modelling: the model predicts every token of a text from those before it.

A text file is a document; a JSON line or a row of a table is one, its text in the field or column `text`. Files or splits
that are named like parts of a data set (`train.txt`, `validation-00000-of-00002.parquet`, a folder `test`) are these parts;
all others together are one set of documents, which is divided.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.commands.progress import progress
from das_gym.data.entries import BadExamples, check_characters, check_fields, read_entries
from das_gym.data.rows import Table, table_of_file
from das_gym.data.splits import LazySequence, Splits, fill_parts, split_off
from das_gym.data.tables import TABLE_SUFFIXES
from das_gym.files import absolute_path, check_plain
from das_gym.models.inputs import Passage
from das_gym.tasks.answering.files import ALL_PARTS, part_in_name
from das_gym.tasks.answering.tables import saved_shards, shards_in
from das_gym.tasks.base import TokenTask, mean_by_prompt

TEXT_COLUMN = "text"

FORMATS = (
    f".txt or .jsonl files, parquet files or a folder of `save_to_disk` with a column `{TEXT_COLUMN}`, of one kind; those "
    "named train, val and test are these parts"
)

SECTION_CHARACTERS = 2000
SECTIONS = 40
"""Fewest characters of a section of a single text, and about how many sections a long one is cut into."""

DOCUMENTS_AT_A_TIME = 256

DEFAULT_CONTEXT = 512

PAIRS_PER_WINDOW = 32
"""A window takes the memory of this many short prompts: it has logits of the full vocabulary at every token."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is not blank; its key has its file, and its line or row."""

    key: str
    text: str


def load_documents(data_root: str | Path, on_bad_example: str = "raise", column: str | None = None) -> Splits[Document]:
    """Read documents and divide them into the three splits, so that no document is in two of them.

    The data root is a folder in one of `FORMATS`, or one of its files, which is then read alone; `column` is the field or
    column of the text (None is `text`). Where val or test is missing, documents of another part take its place: see
    `das_gym.data.splits.fill_parts`. Blank documents are left out. Errors are those of `Task.load_splits`.
    """
    bad = BadExamples(on_bad_example)
    root, files = find_part_files(data_root, (".parquet", ".jsonl", ".txt"), FORMATS)
    folder = root if root.is_dir() else root.parent
    parts = {
        part: [document for path in paths for document in _read(path, folder, column or TEXT_COLUMN, bad)]
        for part, paths in files.items()
    }
    return _divide(parts, str(root), bad)


def find_part_files(data_root: str | Path, suffixes: Sequence[str], formats: str) -> tuple[Path, dict[str, list[Path]]]:
    """Return the absolute path of a data root, and the files of each part: train, val, test, or one for all.

    Files with one of the suffixes are looked for, and folders of `save_to_disk`; errors name the expected `formats`.

    Raises:
        FileNotFoundError: `data_root` does not exist.
        ValueError: The folder holds none of these files, or files of several kinds.
    """
    root = absolute_path(data_root)
    if not root.exists():
        raise FileNotFoundError(f"`data_root` does not exist: got {str(data_root)!r}, expected {formats}")
    if root.is_file():
        return root, {ALL_PARTS: [root]}
    kinds: dict[str, Mapping[str, Sequence[Path]]] = {"save_to_disk": saved_shards(root)}
    # `save_to_disk` writes JSON files next to its tables.
    if not kinds["save_to_disk"]:
        kinds |= {suffix: shards_in(root, suffix) for suffix in suffixes}
    found = {kind: shards for kind, shards in kinds.items() if shards}
    if len(found) != 1:
        got = " and ".join(found) or "none of them"
        raise ValueError(f"{root} holds no data in a known format: got {got}, expected {formats}. Or pass one file.")
    (shards,) = found.values()
    part_of_name = {name: part_in_name(Path(name))[0] for name in shards}
    parts: dict[str, list[Path]] = {}
    for name, paths in shards.items():
        # Words such as `test` mean parts only if every name has one.
        part = ALL_PARTS if ALL_PARTS in part_of_name.values() else part_of_name[name]
        parts.setdefault(part, []).extend(paths)
    return root, parts


def _read(path: Path, folder: Path, column: str, bad: BadExamples) -> list[Document]:
    if path.suffix in TABLE_SUFFIXES:
        return read_documents(table_of_file(path, folder), column, bad)
    entries = read_entries(path, bad) if path.suffix == ".jsonl" else iter([(str(path), {column: _read_text(path)})])
    name = path.relative_to(folder).as_posix()
    numbered = ((where, (number, entry)) for number, (where, entry) in enumerate(entries))
    return bad.parse(numbered, partial(_document, name, column))


def read_documents(table: Table, column: str, bad: BadExamples) -> list[Document]:
    """Return the texts in a column of a table that are not blank; `bad` receives bad rows. ValueError without the column."""
    return bad.parse(table.entries([column]), partial(_document, table.key, column))


def _document(name: str, column: str, entry: tuple[int, Any], where: str) -> Document | None:
    number, values = entry
    check_fields(values, {column: str}, where)
    text = values[column]
    check_characters(text, f"{where}: `{column}`")
    return Document(f"{name}#{number}", text) if text.strip() else None


def _read_text(path: Path) -> str:
    check_plain([path])
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error}), expected {FORMATS}") from error


def _divide(parts: Mapping[str, Sequence[Document]], source: str, bad: BadExamples) -> Splits[Document]:
    train, reward, test = fill_parts(parts, partial(_split_off, source=source, bad=bad))
    reward = _keep_apart(reward, test, bad)
    train = _keep_apart(train, [*reward, *test], bad)
    for part in (train, reward, test):
        bad.require(part, source)
    return Splits(train, reward, test, tuple(bad.lines))


def _keep_apart(earlier: Sequence[Document], later: Sequence[Document], bad: BadExamples) -> list[Document]:
    texts = {document.text: document.key for document in later}
    bad.lines += [f"{d.key} is left out: {texts[d.text]} has the same text" for d in earlier if d.text in texts]
    return [document for document in earlier if document.text not in texts]


def _split_off(
    documents: Sequence[Document], shares: Sequence[float], source: str, bad: BadExamples
) -> tuple[list[list[Document]], list[Document]]:
    found = split_off(documents, [d.text for d in documents], shares)  # equal texts stay together
    if found is None:
        cut = [section for document in documents for section in split_into_sections(document)]
        found = split_off(cut, [d.text for d in cut], shares)
    if found is None:
        raise ValueError(
            f"{source}: too little text to divide: expected {len(shares) + 1} or more documents, or sections of "
            f"{SECTION_CHARACTERS:,} characters{bad.last_skipped}"
        )
    return found


def split_into_sections(document: Document) -> list[Document]:
    """Cut a document at blank lines into sections of at least `SECTION_CHARACTERS`, and a long one into about `SECTIONS`."""
    least = max(SECTION_CHARACTERS, len(document.text) // SECTIONS)
    texts = [""]
    for piece in re.split(r"(\n\s*\n)", document.text):
        if len(texts[-1]) >= least and piece.strip():
            texts.append("")
        texts[-1] += piece
    return [Document(f"{document.key}.{n}", text) for n, text in enumerate(texts) if text.strip()]


@dataclass(frozen=True, slots=True)
class WindowExample:
    """Some tokens of a document in a row, after those that the tokenizer puts before every text."""

    key: str
    ids: tuple[int, ...]


def split_into_windows(documents: Sequence[Document], tokenizer: Any, context: int) -> LazySequence[WindowExample]:
    """Return the windows of documents, in order; ValueError if `context`, their tokens, leaves none to predict.

    A window begins with the special tokens that the tokenizer puts before every text, if there are any. The rest of a
    document that fills no window is left out, so that all windows count equally in a mean over tokens; a document shorter
    than a window is one shorter window.
    """
    begin = prefix_tokens(tokenizer)
    size = context - len(begin)
    if size < 2 - bool(begin):
        raise ValueError(f"`context` is too small: got {context}, expected at least {2 + len(begin) - bool(begin)} tokens")
    places: list[tuple[str, np.ndarray, int]] = []
    with progress(len(documents), "reading text", unit="document") as bar:
        for start in range(0, len(documents), DOCUMENTS_AT_A_TIME):
            chunk = documents[start : start + DOCUMENTS_AT_A_TIME]
            # Text is text: a `</s>` in it does not end the document. Texts are longer than the model's maximum.
            plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            for document, ids in zip(chunk, tokenizer([d.text for d in chunk], **plain)["input_ids"], strict=True):
                tokens = np.array(ids, dtype=np.int32)
                if len(tokens) + len(begin) >= 2:
                    last = max(len(tokens) - size, 0)
                    places += [(document.key, tokens, place) for place in range(0, last + 1, size)]
            bar.update(len(chunk))

    def window(item: tuple[str, np.ndarray, int]) -> WindowExample:
        key, tokens, place = item
        return WindowExample(f"{key}:{place}", (*begin, *tokens[place : place + size].tolist()))

    return LazySequence(places, window)


def prefix_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts before every text, such as `<s>`."""
    whole = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    count = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return tuple(whole[:count])


class TextTask(TokenTask):
    """Language modelling. The loss is the mean negative log-likelihood of a window's tokens, in nats a token.

    An example is a window of `context` tokens of a document; every token but its first is predicted. The metric is the share
    of tokens that are the likeliest ones; `summary` adds the perplexity, exp(mean loss).
    """

    name = "text"
    metric_name = "token_accuracy"
    reward_examples = 64

    @classmethod
    def load_splits(
        cls,
        data_root: str | Path | None,
        on_bad_example: str = "raise",
        columns: str | None = None,
        context: int | None = None,
        tokenizer: Any = None,
    ) -> Splits[WindowExample]:
        """Split documents into windows, see `load_documents` and `split_into_windows`; ValueError without data or tokenizer.

        `columns` is the name of the column of the text, `context` the tokens of a window (None is `DEFAULT_CONTEXT`).
        """
        if data_root is None:
            raise ValueError(f"`data_root` is missing: the task text has no bundled data. Give {FORMATS}.")
        if tokenizer is None:
            raise ValueError("`tokenizer` is missing: windows of text have a number of tokens. Give the model's.")
        documents = load_documents(data_root, on_bad_example, columns)
        return cls._windows(documents, str(data_root), tokenizer, context)

    @classmethod
    def divide_rows(  # type: ignore[override]
        cls,
        parts: Mapping[str, Table],
        bad: BadExamples,
        columns: str | None = None,
        context: int | None = None,
        tokenizer: Any = None,
    ) -> Splits[WindowExample]:
        """Return the splits of rows with a text, as windows; arguments are those of `load_splits`."""
        read = {part: read_documents(table, columns or TEXT_COLUMN, bad) for part, table in parts.items()}
        return cls._windows(_divide(read, "the rows", bad), "the rows", tokenizer, context)

    @classmethod
    def read_rows(  # type: ignore[override]
        cls,
        table: Table,
        bad: BadExamples,
        columns: str | None = None,
        context: int | None = None,
        tokenizer: Any = None,
    ) -> Sequence[WindowExample]:
        """Return the windows of rows with a text; arguments are those of `load_splits`."""
        documents = read_documents(table, columns or TEXT_COLUMN, bad)
        return split_into_windows(documents, tokenizer, context or DEFAULT_CONTEXT)

    @staticmethod
    def _windows(documents: Splits[Document], source: str, tokenizer: Any, context: int | None) -> Splits[WindowExample]:
        size = context or DEFAULT_CONTEXT
        parts = {name: getattr(documents, name) for name in ("train", "reward", "test")}
        windows = {name: split_into_windows(part, tokenizer, size) for name, part in parts.items()}
        short = [name for name, part in windows.items() if not len(part)]
        if short:
            raise ValueError(f"{source} holds no text of two or more tokens in {' and '.join(short)}. Give longer texts.")
        return Splits(windows["train"], windows["reward"], windows["test"], documents.left_out)

    @classmethod
    def format_of(cls, root: Path) -> str:
        """Return the kind of tables in a folder (other tasks read them, too); empty if it has none."""
        kinds = {"parquet files": shards_in(root, ".parquet"), "a folder of `save_to_disk`": saved_shards(root)}
        return next((kind for kind, shards in kinds.items() if shards), "")

    @classmethod
    def examples_for_pairs(cls, pairs: int) -> int:
        """Return the number of windows, at least 1, that take the memory of some short prompts."""
        return max(pairs // PAIRS_PER_WINDOW, 1)

    def pairs(self, examples: Sequence[WindowExample]) -> list[Passage]:  # type: ignore[override]
        """Return each window, whose tokens are all predicted but the first."""
        return [Passage(e.ids) for e in examples]

    def targets(self, examples: Sequence[WindowExample]) -> dict[str, Tensor]:
        """Return `labels`, (tokens,) int64, the predicted tokens of all windows, `prompt` and `lengths`: see `TokenTask`."""
        lengths = torch.tensor([len(e.ids) - 1 for e in examples])
        return {
            "labels": torch.tensor([token for e in examples for token in e.ids[1:]]),
            "prompt": torch.arange(len(examples)).repeat_interleave(lengths),
            "lengths": lengths,
        }

    def metrics(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the share of each window's tokens that are the likeliest ones, (batch,), 0..1."""
        right = logits.argmax(-1) == targets["labels"]
        return mean_by_prompt(right.to(torch.float64 if logits.dtype == torch.float64 else torch.float32), targets)

    def predictions(self, examples: Sequence[WindowExample], logits: Tensor) -> list[dict[str, Any]]:
        """Return `key`, the number of predicted `tokens`, and their mean `loss` in nats."""
        targets = {name: t.to(logits.device) for name, t in self.targets(examples).items()}
        losses = self.losses(logits, targets).tolist()
        return [{"key": e.key, "tokens": len(e.ids) - 1, "loss": x} for e, x in zip(examples, losses, strict=True)]

    def open_ended(self, examples: Sequence[WindowExample]) -> list[WindowExample]:
        return list(examples)

    def generation_prompt(self, example: WindowExample) -> Passage:
        """Return the window as the beginning of a text to continue."""
        return Passage(example.ids, start=len(example.ids))

    def format_generated(self, example: WindowExample, text: str) -> dict[str, Any]:
        return {"key": example.key, "continuation": text}

    def question(self, example: WindowExample) -> str:
        return self.processor.tokenizer.decode(list(example.ids))

    def format_prediction(self, example: WindowExample, prediction: Mapping[str, Any]) -> str:
        return f"{prediction['loss']:.3f} nats a token"

    def summary(self, examples: Sequence[WindowExample], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """Return the mean `loss` in nats a token, the `token_accuracy`, and the `perplexity`, exp(loss)."""
        numbers = super().summary(examples, losses, metrics)
        return {**numbers, "perplexity": math.exp(min(numbers["loss"], 700.0))}  # the largest float is e ** 709
