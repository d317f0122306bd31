"""VQAv2's JSON files: finds them, reads them, and checks every entry."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from das_gym.data.checks import BadExamples, check_characters, check_fields, check_text
from das_gym.tasks.vqa.columns import ColumnsBuilder, VQAColumns

SPLITS = ("train2014", "val2014")
"""Parts whose answers are public."""

UNANSWERED = {"test2015": "test2015", "test-dev2015": "test2015"}
"""Parts without, and the folder of each one's images."""

_QUESTION_FIELDS: dict[str, type] = {"question_id": int, "image_id": int, "question": str}
_ANNOTATION_FIELDS: dict[str, type] = {
    "question_id": int,
    "image_id": int,
    "question_type": str,
    "answer_type": str,
    "multiple_choice_answer": str,
    "answers": list,
}

_TEXTS = ("question", "multiple_choice_answer")
"""What must not be empty."""

Entries = dict[int, dict[str, Any]]
"""Entries of one file by question_id; the answers of an annotation are plain strings."""


def find_file(root: Path, split: str, kind: str) -> Path:
    """The questions or annotations file: the official name, else the one file that has it but for the version in front.

    Args:
        root: The folder.
        split: One of `SPLITS` or `UNANSWERED`.
        kind: `questions` or `annotations`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There are several.
    """
    name = f"OpenEnded_mscoco_{split}_questions.json" if kind == "questions" else f"mscoco_{split}_annotations.json"
    official = root / f"v2_{name}"
    if official.is_file():
        return official
    found = [path for path in sorted(root.glob(f"*{name}")) if path.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{root} has several {kind} files of {split}: {some(p.name for p in found)}; name one {official.name}"
        )
    there = some(sorted(path.name for path in root.iterdir())) or "nothing"
    raise FileNotFoundError(f"{root} has no {kind} file of {split}: looked for {official.name} (or {name}), found {there}")


def some(names: Iterable[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


@dataclass
class PairOfFiles:
    """The questions file and the annotations file of a split.

    Attributes:
        questions, annotations: Their paths.
        bad: Told of every bad entry.
    """

    questions: Path
    annotations: Path
    bad: BadExamples
    _left_out: set[int] = field(default_factory=set)
    _repeated: set[int] = field(default_factory=set)
    _nameless: Counter[str] = field(default_factory=Counter)

    def read(self) -> VQAColumns:
        """The questions with their annotations, in the order of the questions file; places are image ids.

        Raises:
            ValueError: A file is damaged or does not fit its format; with the policy `raise`, an entry is bad, occurs twice
                or has no counterpart; with `skip`, none is left.
        """
        questions = self._entries(self.questions, "questions", _QUESTION_FIELDS)
        annotations = self._entries(self.annotations, "annotations", _ANNOTATION_FIELDS)
        self._drop_alone("annotation", self.annotations, annotations, "question", self.questions, questions)
        self._drop_alone("question", self.questions, questions, "annotation", self.annotations, annotations)
        self._drop_torn(questions, annotations)
        self.bad.require(questions, str(self.questions))
        return _columns(questions, annotations)

    def read_questions(self) -> VQAColumns:
        """The questions alone, nobody's answers beside them; raises as `read` does."""
        questions = self._entries(self.questions, "questions", _QUESTION_FIELDS)
        self.bad.require(questions, str(self.questions))
        nobody = {"question_type": "", "answer_type": "", "multiple_choice_answer": "", "answers": ()}
        return _columns(questions, dict.fromkeys(questions, nobody))

    def _entries(self, path: Path, key: str, fields: dict[str, type]) -> Entries:
        """The good entries of `{key: [...]}`."""
        whole = _read_json(path)
        if not isinstance(whole, dict) or not isinstance(whole.get(key), list):
            raise ValueError(
                f"{path} is JSON but not VQAv2's: its outermost part must be an object with a list named {key!r}"
            )
        if not whole[key]:
            raise ValueError(f"{path} holds no {key}: its list {key!r} is empty, and a split needs at least one question")
        entries: Entries = {}
        for index, entry in enumerate(whole[key]):
            where = f"{path}: {key}[{index}]"
            try:
                _check_entry(entry, fields, where)
            except ValueError as error:
                self.bad.report(error, self._remember(entry, entries, key))
                continue
            if entries.setdefault(entry["question_id"], entry) is not entry:
                self._report_repeated(where, entry["question_id"], key)
        return entries

    def _report_repeated(self, where: str, question_id: int, key: str) -> None:
        """The first entry is kept; an annotation that is repeated along with its question has no line of its own."""
        if key == "questions" or question_id not in self._repeated:
            self.bad.report(ValueError(f"{where} repeats question_id {question_id}; every one must occur once: delete one"))
        self._repeated.add(question_id)

    def _remember(self, entry: object, entries: Entries, key: str) -> int:
        """How many examples go with a bad entry; its counterpart goes too, without a line of its own if it can be told."""
        question_id = entry.get("question_id") if isinstance(entry, dict) else None
        if type(question_id) is not int or not 0 <= question_id < 2**63:
            self._nameless[key] += 1
            return 1
        if question_id in entries:
            return 1
        new = question_id not in self._left_out
        self._left_out.add(question_id)
        return int(new)

    def _drop_alone(
        self, name: str, path: Path, entries: Entries, other_name: str, other_path: Path, others: Entries
    ) -> None:
        """Takes out entries that have no counterpart in the other file."""
        alone = [question_id for question_id in entries if question_id not in others]
        for question_id in alone:
            if question_id not in self._left_out:
                counted = "" if self.bad.skips else f" ({len(alone)} such)"
                self.bad.report(
                    ValueError(
                        f"{path}: the {name} of question_id {question_id} has no {other_name} in {other_path}{counted}; "
                        f"add the {other_name}, or take the {name} out"
                    ),
                    self._examples_alone(f"{other_name}s"),
                )
            del entries[question_id]

    def _examples_alone(self, others: str) -> int:
        """1, or 0 if its counterpart may be a bad entry without an id, which was counted."""
        counted = self._nameless[others] > 0
        self._nameless[others] -= counted
        return int(not counted)

    def _drop_torn(self, questions: Entries, annotations: Entries) -> None:
        """Takes out questions whose annotation is about another image."""
        torn = [i for i, entry in questions.items() if annotations[i]["image_id"] != entry["image_id"]]
        for question_id in torn:
            self.bad.report(
                ValueError(
                    f"question_id {question_id} is about image_id {questions[question_id]['image_id']} in {self.questions}, "
                    f"but about {annotations[question_id]['image_id']} in {self.annotations}; the two files must agree"
                )
            )
            del questions[question_id]


def _columns(questions: Entries, annotations: Entries) -> VQAColumns:
    builder = ColumnsBuilder()
    for question_id, entry in questions.items():
        annotation = annotations[question_id]
        builder.add(
            ids=(question_id, entry["image_id"], entry["image_id"]),
            question=entry["question"],
            types=(annotation["question_type"], annotation["answer_type"]),
            answer=annotation["multiple_choice_answer"],
            answers=annotation["answers"],
        )
    return builder.build()


def _read_json(path: Path) -> object:
    strings: dict[str, str] = {}

    def slim(entry: dict[str, Any]) -> object:
        """An annotator's answer as its string alone: VQAv2's millions of these objects would fill gigabytes."""
        answer = entry.get("answer")
        if isinstance(answer, str) and "question_id" not in entry:
            return strings.setdefault(answer, answer)
        return entry

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_hook=slim)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}, character {error.pos} of {len(error.doc)}"
        raise ValueError(
            f"{path} is not whole JSON ({error.msg} at {where}); the file is truncated or damaged: get it again"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 ({error}); the file is damaged or still packed: get it again"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists in lists in lists
        raise ValueError(f"{path} is not whole JSON ({error}); the file is damaged: get it again") from error


def _check_entry(entry: Any, fields: dict[str, type], where: str) -> None:
    """Every field is there, with a value of its type; an annotation has an answer."""
    check_fields(entry, fields, where)
    for name in fields:
        value = entry[name]
        if isinstance(value, int) and not 0 <= value < 2**63:
            raise ValueError(f"{where} has {name}={value!r:.60}; it must be 0 or more and less than 2**63")
        if name in _TEXTS:
            check_text(value, f"{where}: {name}")
        elif isinstance(value, str):
            check_characters(value, f"{where}: {name}")
    if "answers" in fields:
        _check_answers(entry["answers"], f"{where} (question_id {entry['question_id']})")


def _check_answers(answers: Sequence[object], where: str) -> None:
    if not answers:
        raise ValueError(f"{where} has an empty list of answers; it needs one or more (VQAv2: ten)")
    for number, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise ValueError(
                f"{where}: answers[{number}] is {answer!r:.60}; it must be an object with a text named 'answer'"
            )
        check_characters(answer, f"{where}: answers[{number}]")  # one of ten people may have left it empty
