"""Reads VQAv2, and any data set in its format, from the official files.

A data root holds, for train2014 and val2014 each, `v2_OpenEnded_mscoco_{split}_questions.json`,
`v2_mscoco_{split}_annotations.json` and the images `{split}/COCO_{split}_{image_id:012d}.jpg`. VQA v1, whose names lack
the `v2_`, is read as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.data.vqa_accuracy import normalize_answer

SPLITS = ("train2014", "val2014")

VQAV2_MIN_COUNT = 9
"""VQAv2's answer vocabulary holds the answers given to at least nine questions."""

KEPT_SHARE = 0.9
"""Least share of the questions that a vocabulary of the default threshold can answer."""

_QUESTION_FIELDS: dict[str, type] = {"question_id": int, "image_id": int, "question": str}
_ANNOTATION_FIELDS: dict[str, type] = {
    "question_id": int,
    "image_id": int,
    "question_type": str,
    "answer_type": str,
    "multiple_choice_answer": str,
    "answers": list,
}


@dataclass(frozen=True, slots=True)
class VQAExample:
    """A question about an image, with what people answered.

    Attributes:
        question_id, image_id: The data set's own numbers.
        image_path: The image file.
        question: The question as written.
        question_type, answer_type: The data set's own groups, such as `what color is the` and `other`.
        answer: The annotators' most frequent answer, normalised.
        answers: Every annotator's answer, normalised; ten in VQAv2.
    """

    question_id: int
    image_id: int
    image_path: Path
    question: str
    question_type: str
    answer_type: str
    answer: str
    answers: tuple[str, ...]

    @property
    def key(self) -> str:
        """Tells the question from every other of the data set, also where two splits share a question_id."""
        return f"{self.image_path.parent.name}/{self.question_id}"


@dataclass(frozen=True)
class VQASplits:
    """Examples to train on, to score masks on, and to report; no image is in two of them."""

    train: tuple[VQAExample, ...]
    reward: tuple[VQAExample, ...]
    test: tuple[VQAExample, ...]


class _Normalized(dict[str, str]):
    """Normalised answers by the raw ones; each is worked out and held in memory once."""

    def __missing__(self, raw: str) -> str:
        self[raw] = normalize_answer(raw)
        return self[raw]


def in_reward_split(image_id: int) -> bool:
    """Whether an image of val2014 belongs to the reward split (else to test).

    It is the lowest bit of the 8-byte BLAKE2b hash of the decimal image id: the same for ever, whatever else there is.
    """
    return bool(hashlib.blake2b(str(image_id).encode(), digest_size=8).digest()[-1] & 1)


def load_vqav2(data_root: str | Path) -> VQASplits:
    """Read a data set in VQAv2's format: train2014 to train, the images of val2014 halved into reward and test.

    Args:
        data_root: The folder described at the top of this module.

    Returns:
        The three splits, each in the order of its questions file.

    Raises:
        FileNotFoundError: The folder, a file or an image is missing.
        ValueError: A file is damaged or does not fit its format, train2014 has fewer than two different answers, or
            val2014 has too few images to halve.
    """
    train = read_vqav2(data_root, "train2014")
    answers = {example.answer for example in train}
    if len(answers) < 2:
        path = _find_file(Path(data_root).expanduser(), "train2014", "annotations")
        raise ValueError(
            f"{path}: every question has the answer {answers.pop()!r}; VQA needs at least two different answers "
            "(multiple_choice_answer) to choose from"
        )
    val = read_vqav2(data_root, "val2014")
    reward = tuple(example for example in val if in_reward_split(example.image_id))
    test = tuple(example for example in val if not in_reward_split(example.image_id))
    if not reward or not test:
        images = len({example.image_id for example in val})
        empty = "test" if reward else "reward"
        raise ValueError(
            f"{data_root}: the images of val2014 are divided between the reward and the test split by image_id, and all "
            f"{images} fall on one side, so the {empty} split is empty; add images to val2014 (twenty will nearly always do)"
        )
    return VQASplits(train, reward, test)


def read_vqav2(data_root: str | Path, split: str) -> tuple[VQAExample, ...]:
    """Read the questions of one split, with their annotations and the paths of their images.

    Args:
        data_root: The folder described at the top of this module.
        split: `train2014` or `val2014`.

    Returns:
        The examples, in the order of the questions file.

    Raises:
        FileNotFoundError: The folder, a file or an image is missing.
        ValueError: A file is damaged or does not fit its format, or questions and annotations do not pair up.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}; the splits with public answers are {' and '.join(SPLITS)}")
    root = Path(data_root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_root={str(data_root)!r} is not a folder; name the one with VQAv2's JSON files and images"
        )
    questions_path, annotations_path = _find_file(root, split, "questions"), _find_file(root, split, "annotations")
    questions = _read_entries(questions_path, "questions", _QUESTION_FIELDS)
    annotations = _read_entries(annotations_path, "annotations", _ANNOTATION_FIELDS)
    _check_pairs(questions_path, questions, annotations_path, annotations)
    images = {entry["image_id"]: root / split / f"COCO_{split}_{entry['image_id']:012d}.jpg" for entry in questions.values()}
    _check_images(root / split, images, questions_path)
    return tuple(_examples(questions, annotations, images))


def _examples(
    questions: dict[int, dict[str, Any]], annotations: dict[int, dict[str, Any]], images: dict[int, Path]
) -> Iterator[VQAExample]:
    normalized = _Normalized()
    types: dict[str, str] = {}
    for question_id, entry in questions.items():
        annotation = annotations.pop(question_id)
        yield VQAExample(
            question_id=question_id,
            image_id=entry["image_id"],
            image_path=images[entry["image_id"]],
            question=entry["question"],
            question_type=types.setdefault(annotation["question_type"], annotation["question_type"]),
            answer_type=types.setdefault(annotation["answer_type"], annotation["answer_type"]),
            answer=normalized[annotation["multiple_choice_answer"]],
            answers=tuple(normalized[answer] for answer in annotation["answers"]),
        )


def _find_file(root: Path, split: str, kind: str) -> Path:
    """The questions or annotations file: the official name, else the one file that has it but for the version in front."""
    name = f"OpenEnded_mscoco_{split}_questions.json" if kind == "questions" else f"mscoco_{split}_annotations.json"
    official = root / f"v2_{name}"
    if official.is_file():
        return official
    found = [path for path in sorted(root.glob(f"*{name}")) if path.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{root} has several {kind} files of {split}: {_some(p.name for p in found)}; name one {official.name}"
        )
    there = _some(sorted(path.name for path in root.iterdir())) or "nothing"
    raise FileNotFoundError(f"{root} has no {kind} file of {split}: looked for {official.name} (or {name}), found {there}")


def _some(names: Iterator[str] | Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _read_entries(path: Path, key: str, fields: dict[str, type]) -> dict[int, dict[str, Any]]:
    """The checked entries of `{key: [...]}` by question_id; the answers of an annotation are plain strings."""
    whole = _read_json(path)
    if not isinstance(whole, dict) or not isinstance(whole.get(key), list):
        raise ValueError(f"{path} is JSON but not VQAv2's: its outermost part must be an object with a list named {key!r}")
    if not whole[key]:
        raise ValueError(f"{path} holds no {key}: its list {key!r} is empty, and a split needs at least one question")
    entries: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(whole[key]):
        _check_entry(entry, fields, f"{path}: {key}[{index}]")
        if entries.setdefault(entry["question_id"], entry) is not entry:
            raise ValueError(
                f"{path}: {key}[{index}] repeats question_id {entry['question_id']}; every one must occur once: delete one"
            )
    return entries


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


def _check_entry(entry: object, fields: dict[str, type], where: str) -> None:
    """Every field is there, with a value of its type; an annotation has an answer."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r:.60}; it must be an object with {', '.join(fields)}")
    for field, kind in fields.items():
        if field not in entry:
            raise ValueError(
                f"{where} has no {field!r}; it needs {', '.join(fields)}, and has {', '.join(entry) or 'nothing'}"
            )
        if type(entry[field]) is not kind:
            raise ValueError(f"{where} has {field}={entry[field]!r:.60}; it must be of type {kind.__name__}")
    if "answers" not in fields:
        return
    if not entry["answers"]:
        raise ValueError(
            f"{where} (question_id {entry['question_id']}) has an empty list of answers; it needs one or more (VQAv2: ten)"
        )
    for number, answer in enumerate(entry["answers"]):
        if not isinstance(answer, str):
            raise ValueError(
                f"{where}: answers[{number}] is {answer!r:.60}; it must be an object with a text named 'answer'"
            )


def _check_pairs(
    questions_path: Path,
    questions: dict[int, dict[str, Any]],
    annotations_path: Path,
    annotations: dict[int, dict[str, Any]],
) -> None:
    """Every question has its annotation, and the other way round, about the same image."""
    for name, path, entries, other_name, other_path, others in (
        ("annotation", annotations_path, annotations, "question", questions_path, questions),
        ("question", questions_path, questions, "annotation", annotations_path, annotations),
    ):
        alone = [question_id for question_id in entries if question_id not in others]
        if alone:
            raise ValueError(
                f"{path}: the {name} of question_id {alone[0]} has no {other_name} in {other_path} ({len(alone)} such); "
                f"add the {other_name}, or take the {name} out"
            )
    for question_id, entry in questions.items():
        if annotations[question_id]["image_id"] != entry["image_id"]:
            raise ValueError(
                f"question_id {question_id} is about image_id {entry['image_id']} in {questions_path}, but about "
                f"{annotations[question_id]['image_id']} in {annotations_path}; the two files must agree"
            )


def _check_images(folder: Path, images: dict[int, Path], questions_path: Path) -> None:
    """Every image is in the folder, by one listing of it."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; unpack the images there, named like {next(iter(images.values())).name}"
        )
    with os.scandir(folder) as listing:
        there = {entry.name for entry in listing}
    missing = [path for path in images.values() if path.name not in there]
    if missing:
        raise FileNotFoundError(
            f"there is no image {missing[0]} ({len(missing)} of the {len(images)} images that {questions_path.name} "
            "asks about are missing); put them there, or take their questions and annotations out"
        )


def answer_vocabulary(examples: Sequence[VQAExample], min_count: int | None = None) -> tuple[str, ...]:
    """The answers a model chooses from: those given to at least `min_count` questions, in first-seen order.

    Args:
        examples: The examples to learn the answers from; their `answer` counts.
        min_count: Questions that an answer must be given to, 1 or more. None takes the largest threshold up to VQAv2's nine
            that leaves at least 90 % of the questions answerable and at least two answers.

    Returns:
        The answers, each once, at least two; the index is the class.

    Raises:
        ValueError: Fewer than two answers remain, or `min_count` is less than 1.
    """
    if min_count is not None and min_count < 1:
        raise ValueError(f"min_count={min_count}; pass 1 or more, or None to have it chosen")
    counts = Counter(example.answer for example in examples)
    if len(counts) < 2:
        raise ValueError(
            f"the {len(examples)} examples have {len(counts)} different answers, {_some([repr(a) for a in counts])}; VQA "
            "needs at least two to choose from: pass other examples"
        )
    second = counts.most_common(2)[1][1]
    threshold = _default_min_count(counts, second) if min_count is None else min_count
    if threshold > second:
        raise ValueError(
            f"min_count={min_count} leaves fewer than two answers of {len(counts)}; the second most frequent was given "
            f"to {second} of {len(examples)} questions: pass min_count={second} or less, or None to have it chosen"
        )
    return tuple(answer for answer, count in counts.items() if count >= threshold)


def _default_min_count(counts: Counter[str], most: int) -> int:
    """The largest threshold up to nine and `most` that leaves KEPT_SHARE of the questions answerable; 1 always does."""
    total = counts.total()
    for threshold in range(min(VQAV2_MIN_COUNT, most), 1, -1):
        if sum(count for count in counts.values() if count >= threshold) >= KEPT_SHARE * total:
            return threshold
    return 1
