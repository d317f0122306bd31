"""Read VQAv2's JSON files, and check every entry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import Fields, check_characters, check_fields, check_text, read_list
from das_gym.data.images import ImageSource
from das_gym.tasks.vqa.accuracy import normalize_answer
from das_gym.tasks.vqa.examples import VQAExample, normalized_answers

SPLITS = ("train2014", "val2014")
"""Parts whose answers are public."""

UNANSWERED = {"test2015": "test2015", "test-dev2015": "test2015"}
"""Parts without answers, and the folder of each one's images."""

_QUESTION_FIELDS: Fields = {"question_id": int, "image_id": int, "question": str}
_ANNOTATION_FIELDS: Fields = {
    "question_id": int,
    "image_id": int,
    "question_type": str,
    "answer_type": str,
    "multiple_choice_answer": str,
    "answers": list,
}

Entries = dict[int, dict[str, Any]]
"""Entries of one file by question_id; the answers of an annotation are plain strings."""


def read_questions(
    questions_path: Path, annotations_path: Path | None, split: str, image_at: Callable[[int], ImageSource], bad: BadExamples
) -> list[VQAExample]:
    """Return questions with their annotations, if these are public, in the order of the questions file.

    `image_at` returns an image by its id. `bad` receives bad entries, repeated ones, and entries without a counterpart in
    the other file.
    """
    reported: set[int] = set()
    questions = _read_entries(questions_path, "questions", _QUESTION_FIELDS, bad, reported)
    if annotations_path is None:
        empty = {"question_type": "", "answer_type": "", "multiple_choice_answer": "", "answers": ()}
        annotations: Entries = {number: {**entry, **empty} for number, entry in questions.items()}
    else:
        annotations = _read_entries(annotations_path, "annotations", _ANNOTATION_FIELDS, bad, reported)

    def example(number: int, where: str) -> VQAExample | None:
        question, annotation = questions.get(number), annotations.get(number)
        if question is None or annotation is None:
            if number in reported:  # its counterpart is there, but bad
                return None
            raise ValueError(f"{where} has no {'question' if question is None else 'annotation'}")
        if question["image_id"] != annotation["image_id"]:
            raise ValueError(
                f"{where} has different images: got image_id {question['image_id']} in {questions_path}, "
                f"{annotation['image_id']} in {annotations_path}"
            )
        return VQAExample(
            question_id=number,
            image_id=question["image_id"],
            image=image_at(question["image_id"]),
            question=question["question"],
            question_type=sys.intern(annotation["question_type"]),
            answer_type=sys.intern(annotation["answer_type"]),
            answer=normalize_answer(annotation["multiple_choice_answer"]),
            answers=normalized_answers(annotation["answers"]),
            split=split,
        )

    numbers = dict.fromkeys([*questions, *annotations])
    return bad.parse(((f"{questions_path}: question_id {number}", number) for number in numbers), example)


def _read_entries(path: Path, key: str, fields: Fields, bad: BadExamples, reported: set[int]) -> Entries:
    """Read the good entries of `{key: [...]}`; the ids of bad ones are added to `reported`."""
    entries: Entries = {}

    def checked(entry: Any, where: str) -> None:
        number = entry.get("question_id") if isinstance(entry, dict) else None
        try:
            _check_entry(entry, fields, where)
            if number in entries:
                raise ValueError(f"{where} repeats `question_id` {number}")
        except ValueError:
            if isinstance(number, int):
                reported.add(number)
            raise
        entries[entry["question_id"]] = entry

    strings: dict[str, str] = {}

    def shorten(entry: dict[str, Any]) -> object:
        """Replace an annotator's answer by its string: VQAv2's millions of objects would take gigabytes."""
        answer = entry.get("answer")
        if isinstance(answer, str) and "question_id" not in entry:
            return strings.setdefault(answer, answer)
        return entry

    listed = read_list(path, key, shorten)
    bad.parse(((f"{path}: {key}[{index}]", entry) for index, entry in enumerate(listed)), checked)
    return entries


def _check_entry(entry: Any, fields: Fields, where: str) -> None:
    check_fields(entry, fields, where)
    for name in fields:
        value = entry[name]
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{where}: wrong `{name}`: got {value!r:.60}, expected 0 or more")
        if name in ("question", "multiple_choice_answer"):
            check_text(value, f"{where}: `{name}`")
        elif isinstance(value, str):
            check_characters(value, f"{where}: `{name}`")
    if "answers" in fields:
        if not entry["answers"]:
            raise ValueError(f"{where} has no answers, expected one or more (VQAv2: ten)")
        for number, answer in enumerate(entry["answers"]):
            if not isinstance(answer, str):
                raise ValueError(f"{where}: wrong `answers[{number}]`: got {answer!r:.60}, expected an object with `answer`")
            check_characters(answer, f"{where}: `answers[{number}]`")  # an annotator may have left it empty
