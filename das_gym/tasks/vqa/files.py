"""Read VQAv2, from its official files or from arrow tables.

A data root holds, for train2014 and val2014 each, `v2_OpenEnded_mscoco_{split}_questions.json`,
`v2_mscoco_{split}_annotations.json` and the images `{split}/COCO_{split}_{image_id:012d}.jpg`, or with another usual suffix.

Of arrow tables, `vqav2_train.arrow` is for training, and `vqav2_val.arrow`, or `vqav2_trainable_val.arrow` and
`vqav2_rest_val.arrow`, into which ViLT divides it, is halved by image as the official val2014 is (see `in_reward_split`).

The tables hold less than the official files: of each question's ten answers those in the vocabulary of ViLT's scripts, with
soft scores. Each is read as often as its score says (0.3, 0.6, 0.9, 1.0: 1, 2, 3, 4 times); `OUT_OF_VOCABULARY` stands for
the rest of the ten. Questions without an answer in the vocabulary and question types are missing, and two spellings of an
answer were not counted together, so accuracies differ a little from those with the official files.
"""

import hashlib
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from das_gym.data.arrow_format import ArrowFormat, require_table
from das_gym.data.entries import (
    BadExamples,
    Fields,
    check_characters,
    check_fields,
    check_text,
    check_unique,
    data_folder,
    find_file,
    first_few,
    read_list,
)
from das_gym.data.images import SUFFIXES, ImageFile, ImageSource, OneImage, files_in
from das_gym.data.rows import CellImage
from das_gym.data.splits import Splits
from das_gym.tasks.vqa.accuracy import normalize_answer, strip_whitespace

VQAV2_MIN_COUNT = 9
"""VQAv2's answer vocabulary holds the answers given to at least nine questions."""

MAX_ODD_SHARE = 0.05
"""Largest share of questions with a unanimous answer that is not normalized; from more on, a warning is given."""

KEPT_SHARE = 0.9
"""Least share of the questions that a vocabulary of the default threshold can answer."""

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

TABLES = ArrowFormat(
    "vqa",
    prefixes=("vqav2",),
    fields={"image_id": int},
    lists={"question_id": int, "questions": str, "answers": list, "answer_scores": list},
)

N_ANSWERS = 10

OUT_OF_VOCABULARY = "~out of vocabulary~"
"""Stands for an annotator's answer that the table does not hold; it normalizes to itself."""

_COUNTS = {0.3: 1, 0.6: 2, 0.9: 3, 1.0: 4}
"""How many annotators a soft score stands for; 4 is four or more."""


@dataclass(frozen=True, slots=True)
class VQAExample(OneImage):
    """A question about an image, with the answers of the annotators.

    Attributes:
        question_id, image_id: The data set's own numbers.
        image: The image.
        question: The question as written.
        question_type, answer_type: The data set's own groups, such as `what color is the` and `other`; may be empty.
        answer: The annotators' most frequent answer, normalized.
        answers: Every annotator's answer, ten in VQAv2; see `normalized_answers`.
        split: The part of the data set, such as `train2014`.
    """

    question_id: int
    image_id: int
    image: ImageSource
    question: str
    question_type: str
    answer_type: str
    answer: str
    answers: tuple[str, ...]
    split: str = ""

    @property
    def key(self) -> str:
        """A name that is unique in the data set, also where two splits share a question_id."""
        return f"{self.split}/{self.question_id}"


def normalized_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """Return the answers normalized, but as written where all annotators wrote the same."""
    written = {strip_whitespace(answer) for answer in set(answers)}
    if len(written) == 1:
        return (sys.intern(written.pop()),) * len(answers)
    return tuple(sys.intern(normalize_answer(answer)) for answer in answers)  # VQAv2 has millions, few of them distinct


def warn_about_spelling(examples: Sequence[VQAExample], source: str) -> None:
    """Warn where many questions have a unanimous answer, such as `Yes`, that is not normalized: no model can give it."""
    odd = [e.answers[0] for e in examples if e.answers and normalize_answer(e.answers[0]) != e.answers[0]]
    if len(odd) > MAX_ODD_SHARE * len(examples):
        warnings.warn(
            f"{source}: unanimous answers that no model gives: got {len(odd)} of {len(examples)} questions, such as "
            f"{odd[0]!r}. VQA's metric counts {normalize_answer(odd[0])!r} as wrong there. Write the answers in that form",
            stacklevel=2,
        )


def in_reward_split(image_id: int) -> bool:
    """Return True for images of val2014 in the reward split (else test): the lowest bit of the id's 8-byte BLAKE2b hash."""
    return bool(hashlib.blake2b(str(image_id).encode(), digest_size=8).digest()[-1] & 1)


def read_vqav2(data_root: str | Path, split: str, bad: BadExamples | None = None) -> list[VQAExample]:
    """Read the questions of a split, in order, with annotations and image paths; FileNotFoundError if one is missing.

    The split is `train2014` or `val2014`; or `test2015` or `test-dev2015`, whose examples have no answers.
    """
    if split not in (*SPLITS, *UNANSWERED):
        raise ValueError(f"unknown `split`: got {split!r}, expected {', '.join((*SPLITS, *UNANSWERED))}")
    root = data_folder(data_root, "VQAv2's JSON files and images")
    bad = bad or BadExamples()
    questions = find_file(root, [f"v2_OpenEnded_mscoco_{split}_questions.json"])
    annotations = find_file(root, [f"v2_mscoco_{split}_annotations.json"]) if split in SPLITS else None
    folder = root / UNANSWERED.get(split, split)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist, expected a folder of images COCO_{folder.name}_<image_id>.jpg")
    images = [Path(name) for name in sorted(files_in(folder)) if Path(name).suffix.lower() in SUFFIXES]
    images.sort(key=lambda path: path.suffix == ".jpg")  # `.jpg` wins where an image has several suffixes
    names = {path.stem: path.name for path in images}

    @cache
    def image_at(image_id: int) -> ImageFile:
        stem = f"COCO_{folder.name}_{image_id:012d}"
        return ImageFile(folder / names.get(stem, f"{stem}.jpg"))

    examples = read_questions(questions, annotations, split, image_at, bad)
    return bad.drop_broken(examples, str(questions), lambda e: f"question_id {e.question_id}")


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
        question = questions.get(number)
        annotation = annotations.get(number)
        if question is None or annotation is None:
            if number in reported:  # its counterpart exists, but is bad
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


def split_val(
    val: Sequence[VQAExample], source: str, bad: BadExamples
) -> tuple[tuple[VQAExample, ...], tuple[VQAExample, ...]]:
    """Return the reward and the test examples of val2014, divided by image; raise ValueError where one would be empty."""
    in_reward = {image_id: in_reward_split(image_id) for image_id in {example.image_id for example in val}}
    if len(set(in_reward.values())) < 2:
        raise ValueError(
            f"{source}: too few images in val2014: got {len(in_reward)}, of which none belongs to the "
            f"{'test' if any(in_reward.values()) else 'reward'} split, which image_id decides, expected twenty or "
            f"more{bad.last_skipped}"
        )
    return tuple(e for e in val if in_reward[e.image_id]), tuple(e for e in val if not in_reward[e.image_id])


def answer_vocabulary(*parts: Sequence[VQAExample], min_count: int | None = None) -> tuple[str, ...]:
    """Return the answers of at least `min_count` questions, in first-seen order; ValueError for fewer than two.

    The index is the class. Without `min_count` it is the largest threshold up to VQAv2's nine that leaves at least 90 % of
    the questions answerable and at least two answers.
    """
    counts = Counter(example.answer for part in parts for example in part)
    if len(counts) < 2:
        raise ValueError(
            f"too few different answers: got {first_few(list(counts)) or 'none'}, expected two or more to choose from"
        )
    total = counts.total()
    second = counts.most_common(2)[1][1]
    if min_count is None:
        min_count = 1
        # A small data set has few answers of nine questions: its threshold falls until most questions can be answered.
        for threshold in range(min(VQAV2_MIN_COUNT, second), 1, -1):
            if sum(count for count in counts.values() if count >= threshold) >= KEPT_SHARE * total:
                min_count = threshold
                break
    if not 1 <= min_count <= second:
        raise ValueError(f"`min_count` leaves too few answers: got {min_count}, expected 1..{second}, or None to choose it")
    return tuple(answer for answer, count in counts.items() if count >= min_count)


def load_vqa(data_root: str | Path, on_bad_example: str = "raise") -> Splits[VQAExample]:
    """Read train2014 to train on, and val2014, whose images are halved into reward and test.

    Arguments and errors are those of `Task.load_splits`.
    """
    bad = BadExamples(on_bad_example)
    if not TABLES.is_in(data_root):
        train, val = (read_vqav2(data_root, split, bad) for split in ("train2014", "val2014"))
        warn_about_spelling(val, str(data_root))
        return bad.splits(train, *split_val(val, str(data_root), bad), attrgetter("question"))
    tables = TABLES.find(data_root)
    train = _read([require_table(tables, "train")], "train2014", bad)
    parts = [tables[split] for split in ("trainable_val", "rest_val") if split in tables]
    val_paths = [require_table(tables, "val")] if "val" in tables or not parts else parts
    return bad.splits(train, *split_val(_read(val_paths, "val2014", bad), str(val_paths[0]), bad), attrgetter("question"))


def _read(paths: list[Path], split: str, bad: BadExamples) -> list[VQAExample]:
    seen: dict[int, str] = {}

    def example(path: Path, item: dict[str, Any], where: str) -> VQAExample:
        check_fields(item, TABLES.lists, where)
        for name in ("image_id", "question_id"):
            if item[name] < 0:
                raise ValueError(f"{where}: wrong `{name}`: got {item[name]}, expected 0 or more")
        check_text(item["questions"], f"{where}: `questions`")
        check_unique(seen, item["question_id"], "question_id", where)
        ten = _ten_answers(item, where)
        # `max` returns the first of equals: the answers are in the order of the table's scores.
        most_frequent = max(ten, key=lambda answer: (answer != OUT_OF_VOCABULARY, ten.count(answer)))
        ids = (item["question_id"], item["image_id"])
        image = CellImage(path, item["row"])
        answers = normalize_answer(most_frequent), normalized_answers(ten)
        return VQAExample(*ids, image, item["questions"], "", "", *answers, split)

    examples = []
    for path in paths:
        examples += bad.parse(TABLES.entries(path, bad), partial(example, path))
    return bad.drop_broken(examples, str(paths[0]), lambda e: f"question_id {e.question_id}")


def _ten_answers(item: dict[str, Any], where: str) -> list[str]:
    answers = item["answers"]
    scores = item["answer_scores"]
    if not answers or len(answers) != len(scores):
        raise ValueError(
            f"{where}: got {len(answers)} answers and {len(scores)} scores, expected equal numbers of one or more"
        )
    ten: list[str] = []
    for answer, score in zip(answers, scores, strict=True):
        known = [n for value, n in _COUNTS.items() if isinstance(score, float | int) and abs(score - value) < 0.01]
        if not isinstance(answer, str) or not known:
            raise ValueError(f"{where}: wrong score of {answer!r:.60}: got {score}, expected {', '.join(map(str, _COUNTS))}")
        ten += [answer] * known[0]
    return ten + [OUT_OF_VOCABULARY] * (N_ANSWERS - len(ten))
