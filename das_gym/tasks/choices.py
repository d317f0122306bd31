"""Multiple choice: the model chooses the option that is the likeliest text after the question.

A row has a question, a list of options and the right one, under the names that data sets use: ScienceQA's `question`,
`choices`, `answer`, `image` and `hint`, ARC's `choices` of `text` and `label` with `answerKey`, HellaSwag's `ctx`, `endings`
and `label`. The right option is given by its position (from 0), its label or letter, or its text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from das_gym.data.entries import BadExamples, check_text, first_few, read_entries
from das_gym.data.rows import Table, table_of_file
from das_gym.data.splits import Splits
from das_gym.data.tables import TABLE_SUFFIXES
from das_gym.models.inputs import Passage, Prompt
from das_gym.tasks.answering.examples import (
    LETTERS,
    AnswerExample,
    Conversation,
    check_options,
    divide,
    drop_broken,
    examples_by_round,
)
from das_gym.tasks.answering.files import ImageFinder
from das_gym.tasks.answering.tables import read_part
from das_gym.tasks.answering.task import AnsweringTask
from das_gym.tasks.base import mean_by_prompt, sum_by_prompt, token_nats
from das_gym.tasks.text import find_part_files, prefix_tokens

QUESTIONS = ("question", "query", "ctx")
OPTIONS = ("options", "choices", "endings")
ANSWERS = ("answer", "answerKey", "label")
IMAGES = ("image", "images")
HINTS = ("hint", "context")
KINDS = ("kind", "answer_type", "subject")
"""Names of fields and columns, best first. The last three are optional."""

FORMATS = (
    ".json or .jsonl files, parquet files or a folder of `save_to_disk`, of one kind, each row with "
    f"{' or '.join(QUESTIONS)}, {' or '.join(OPTIONS)} (a list) and {' or '.join(ANSWERS)}; also image and hint"
)

Row = Mapping[str, Any]


def load_choices(data_root: str | Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read questions with their options, from a folder in one of `FORMATS` or one of its files.

    The splits are those of `das_gym.tasks.answering.examples.divide`, errors those of `Task.load_splits`.
    """
    bad = BadExamples(on_bad_example)
    root, parts = find_part_files(data_root, (".parquet", ".jsonl", ".json"), FORMATS)
    folder = root if root.is_dir() else root.parent
    read = {}
    for part, paths in parts.items():
        found = [question for path in paths for question in _read_file(path, folder, bad)]
        read[part] = drop_broken(found, str(paths[0].parent if len(paths) > 1 else paths[0]), bad)
    return divide(read, str(root), bad)


def _read_file(path: Path, folder: Path, bad: BadExamples) -> list[Conversation]:
    find = ImageFinder(path.parent, folder).find
    if path.suffix in TABLE_SUFFIXES:
        return read_choices(table_of_file(path, folder, find), bad)
    table = Table((), str(path), path.relative_to(folder).as_posix(), path, find)  # of images that entries name
    entries = ((where, (number, entry)) for number, (where, entry) in enumerate(read_entries(path, bad)))
    return bad.parse(entries, partial(_question, table))


def read_choices(table: Table, bad: BadExamples) -> list[Conversation]:
    """Return the questions in the rows of a table; `bad` receives bad rows."""
    wanted = [name for name in (*QUESTIONS, *OPTIONS, *ANSWERS, *IMAGES, *HINTS, *KINDS) if name in table.columns]
    return bad.parse(table.entries(wanted), partial(_question, table))


def _question(table: Table, entry: tuple[int, Any], where: str) -> Conversation:
    number, values = entry
    row: Row = values if isinstance(values, dict) else {}
    question = check_text(_required(row, QUESTIONS, where), f"{where}: the question")
    column = next((name for name in IMAGES if row.get(name) not in (None, "")), IMAGES[0])
    images = table.images(number, column, row.get(column) or None, where)
    hint = str(_first(row, HINTS) or "").strip()
    options, labels = _options(_required(row, OPTIONS, where), where)
    answer = _answer(_required(row, ANSWERS, where), options, labels)
    check_options(answer, options, where)
    return Conversation(
        where=where,
        key=f"{table.key}/{number}",
        images=tuple(image for _, image in images),
        names=tuple(name for name, _ in images),
        rounds=((f"{hint}\n{question}" if hint else question, answer),),
        options=options,
        kind=str(_first(row, KINDS) or "").strip(),
    )


def _options(value: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    texts = value
    labels = list(LETTERS)
    if isinstance(value, dict):
        texts = value.get("text")
        labels = value.get("label") or labels
    if not isinstance(texts, list):
        raise ValueError(f"{where}: the options are not a list: got {value!r:.60}, expected texts")
    return tuple(check_text(text, f"{where}: an option") for text in texts), tuple(map(str, labels))


def _answer(value: Any, options: Sequence[str], labels: Sequence[str]) -> str:
    """Return the option that an answer names by position, label or text; any other answer as it is, for an error."""
    named = dict(zip(labels, options, strict=False))
    numbered = {str(number): option for number, option in enumerate(options)}
    text = str(value).strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return numbered.get(text, text)
    if text in options:
        return text
    return named.get(text, numbered.get(text, text))


def _first(row: Row, names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _required(row: Row, names: Sequence[str], where: str) -> Any:
    value = _first(row, names)
    if value is None:
        raise ValueError(f"{where} has no {' or '.join(names)}: got {first_few(list(row)) or 'no fields'}")
    return value


class ChoicesTask(AnsweringTask):
    """Multiple choice by likelihood. The loss is -log of the right option's share of the options' likelihoods, in nats.

    The metric `acc` is 1 where the right option's tokens have the largest log-likelihood in sum, `acc_norm` where that sum
    divided by the option's characters is the largest: the metrics of EleutherAI's lm-evaluation-harness.

    As in the harness, a text model reads the question, a space and the option, without a chat template, and a question that
    ends with a question mark becomes `Question: ... Answer:`. A model that sees images is asked by its chat template, and
    the token that ends an answer counts.
    """

    name = "choices"
    metric_name = "acc"
    generates = False

    @classmethod
    def load_splits(  # type: ignore[override]
        cls, data_root: str | Path | None, on_bad_example: str = "raise"
    ) -> Splits[AnswerExample]:
        """Read any of `das_gym.tasks.choices.FORMATS`; ValueError without `data_root`."""
        if data_root is None:
            raise ValueError(f"`data_root` is missing: the task choices has no bundled data. Give {FORMATS}.")
        return load_choices(data_root, on_bad_example)

    @classmethod
    def divide_rows(cls, parts: Mapping[str, Table], bad: BadExamples) -> Splits[AnswerExample]:  # type: ignore[override]
        """Return the splits of rows with the fields of `das_gym.tasks.choices.FORMATS`."""
        read = {part: read_part([table], partial(read_choices, bad=bad), bad) for part, table in parts.items()}
        return divide(read, "the rows", bad)

    @classmethod
    def read_rows(cls, table: Table, bad: BadExamples) -> Sequence[AnswerExample]:  # type: ignore[override]
        """Return the examples of rows with the fields of `das_gym.tasks.choices.FORMATS`."""
        return examples_by_round(read_part([table], partial(read_choices, bad=bad), bad))

    @classmethod
    def load_part(
        cls, data_root: str | Path | None, part: str, on_bad_example: str = "raise", **options: Any
    ) -> Sequence[AnswerExample]:
        return super(AnsweringTask, cls).load_part(data_root, part, on_bad_example, **options)

    @classmethod
    def examples_for_pairs(cls, pairs: int) -> int:
        """Return a quarter as many examples, at least 1: they have several options."""
        return max(pairs // 4, 1)

    def pairs(self, examples: Sequence[AnswerExample]) -> list[Prompt]:  # type: ignore[override]
        """Return each question with each of its options as the answer, example by example."""
        if self.processor.takes_images:  # type: ignore[attr-defined]
            return [Prompt(e.question, e.images, option) for e in examples for option in e.options]
        return [self._passage(e, option) for e in examples for option in e.options]  # type: ignore[misc]

    def _passage(self, example: AnswerExample, option: str) -> Passage:
        if example.images:
            raise ValueError(f"{example.key}: the question has an image, but the model reads only text. Remove it.")
        asked = f"Question: {example.question}\nAnswer:" if example.question.endswith("?") else example.question
        tokenizer = self.processor.tokenizer
        # The harness's way: the whole is tokenized, since a tokenizer may join the end of one part with the other.
        before, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (asked, f"{asked} {option}"))
        begin = prefix_tokens(tokenizer)
        return Passage((*begin, *whole), start=len(begin) + min(len(before), len(whole) - 1))

    def targets(self, examples: Sequence[AnswerExample]) -> dict[str, Tensor]:
        """Return those of `AnsweringTask`, with the place of the right option and the lengths of all options.

        `right` (batch,) int64; `characters` (batch, options) int64, 1 where an example has fewer options.
        """
        lengths = [torch.tensor([len(option) for option in e.options]) for e in examples]
        return {
            **super().targets(examples),
            "right": torch.tensor([e.options.index(e.answer) for e in examples]),
            "characters": pad_sequence(lengths, batch_first=True, padding_value=1),
        }

    def open_ended(self, examples: Sequence[AnswerExample]) -> list[AnswerExample]:
        """Return the examples with the right option alone, whose tokens recovery trains on."""
        return [replace(e, options=(e.answer,)) for e in examples]

    def generation_prompt(self, example: AnswerExample) -> Any:
        """Return the question of an example of `open_ended`; None where there are options."""
        if len(example.options) > 1:
            return None
        (pair,) = self.pairs([example])
        return replace(pair, answer=None) if isinstance(pair, Prompt) else Passage(pair.ids[: pair.start], pair.start)

    def losses(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return -log of the right option's share of the options' likelihoods, (batch,), in nats.

        Of an example of `open_ended`, with one option, it is the mean negative log-likelihood of its tokens.
        """
        nats = token_nats(logits, targets["labels"])
        among = F.cross_entropy(self._likelihoods(nats, targets), targets["right"], reduction="none")
        alone = mean_by_prompt(nats, targets)[targets["reference"]]
        return torch.where(targets["options"] > 1, among, alone)

    def metrics(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return 1 where the right option has the largest likelihood, else 0; (batch,)."""
        likelihoods = self._likelihoods(token_nats(logits, targets["labels"]), targets)
        return (likelihoods.argmax(-1) == targets["right"]).to(likelihoods)

    def other_metrics(self, logits: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `acc_norm`, (batch,): 1 where the right option has the largest likelihood per character, else 0."""
        likelihoods = self._likelihoods(token_nats(logits, targets["labels"]), targets)
        best = (likelihoods / targets["characters"]).argmax(-1)
        return {"acc_norm": (best == targets["right"]).to(likelihoods)}

    def predictions(self, examples: Sequence[AnswerExample], logits: Tensor) -> list[dict[str, Any]]:
        """Return `key`, `answer` (the likeliest option) and `log_likelihoods` of all options, in nats."""
        targets = {name: t.to(logits.device) for name, t in self.targets(examples).items()}
        likelihoods = self._likelihoods(token_nats(logits, targets["labels"]), targets)
        rows = []
        for example, own in zip(examples, likelihoods, strict=True):
            answer = example.options[int(own.argmax())]
            rows.append({"key": example.key, "answer": answer, "log_likelihoods": own[: len(example.options)].tolist()})
        return rows

    def format_generated(self, example: AnswerExample, text: str) -> dict[str, Any]:
        """Raise TypeError: options are chosen, not generated."""
        raise self._not_generated(example, text)

    @staticmethod
    def _likelihoods(nats: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the log-likelihood of each option, (batch, options), -inf where an example has fewer options."""
        sums = -sum_by_prompt(nats, targets)
        options = targets["options"]
        example = targets["example"]
        place = torch.arange(len(sums), device=sums.device) - (options.cumsum(0) - options)[example]
        likelihoods = sums.new_full(targets["characters"].shape, -torch.inf)
        return likelihoods.index_put((example, place), sums)
