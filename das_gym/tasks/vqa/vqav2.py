"""Read VQAv2, and any data set in its format, from the official files.

A data root holds, for train2014 and val2014 each, `v2_OpenEnded_mscoco_{split}_questions.json`,
`v2_mscoco_{split}_annotations.json` and the images `{split}/COCO_{split}_{image_id:012d}.jpg`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import data_folder, find_file, some
from das_gym.data.images import SUFFIXES, ImageFile, files_in
from das_gym.data.splits import Splits
from das_gym.tasks.vqa.accuracy import normalize_answer
from das_gym.tasks.vqa.examples import VQAExample
from das_gym.tasks.vqa.vqav2_files import SPLITS, UNANSWERED, read_questions

VQAV2_MIN_COUNT = 9
"""VQAv2's answer vocabulary holds the answers given to at least nine questions."""

MAX_ODD_SHARE = 0.05
"""Share of questions with a unanimous answer that is not normalized from which a warning is given."""

KEPT_SHARE = 0.9
"""Least share of the questions that a vocabulary of the default threshold can answer."""


def in_reward_split(image_id: int) -> bool:
    """Return whether an image of val2014 belongs to the reward split (else to test).

    It is the lowest bit of the 8-byte BLAKE2b hash of the decimal image id: the same for ever, whatever else there is.
    """
    return bool(hashlib.blake2b(str(image_id).encode(), digest_size=8).digest()[-1] & 1)


def load_vqav2(data_root: str | Path, on_bad_example: str = "raise") -> Splits[VQAExample]:
    """Read train2014 to train on, and val2014, whose images are halved into reward and test.

    Arguments and errors are those of `Task.load_splits`.
    """
    bad = BadExamples(on_bad_example)
    train, val = read_vqav2(data_root, "train2014", bad), read_vqav2(data_root, "val2014", bad)
    _warn_about_spelling(val, str(data_root))
    return bad.splits(train, *halve(val, str(data_root), bad))


def read_vqav2(data_root: str | Path, split: str, bad: BadExamples | None = None) -> list[VQAExample]:
    """Read the questions of one split, in the order of their file, with their annotations and the paths of their images.

    The split is `train2014` or `val2014`; or `test2015` or `test-dev2015`, whose examples have no answers.
    """
    if split not in (*SPLITS, *UNANSWERED):
        raise ValueError(f"unknown `split`: got {split!r}, expected {', '.join((*SPLITS, *UNANSWERED))}")
    root, bad = data_folder(data_root, "VQAv2's JSON files and images"), bad or BadExamples()
    questions = find_file(root, [f"v2_OpenEnded_mscoco_{split}_questions.json"])
    annotations = find_file(root, [f"v2_mscoco_{split}_annotations.json"]) if split in SPLITS else None
    folder = root / UNANSWERED.get(split, split)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist, expected a folder of images COCO_{folder.name}_<image_id>.jpg")
    listed = [Path(name) for name in sorted(files_in(folder)) if name.startswith(f"COCO_{folder.name}_")]
    # `.jpg` wins where an image has several suffixes.
    names = {
        path.stem: path.name
        for path in sorted(listed, key=lambda path: path.suffix == ".jpg")
        if path.suffix.lower() in SUFFIXES
    }

    @cache
    def image_at(image_id: int) -> ImageFile:
        stem = f"COCO_{folder.name}_{image_id:012d}"
        return ImageFile(folder / names.get(stem, f"{stem}.jpg"))

    examples = read_questions(questions, annotations, split, image_at, bad)
    return bad.drop_broken(examples, str(questions), lambda e: f"question_id {e.question_id}")


def _warn_about_spelling(val: Sequence[VQAExample], source: str) -> None:
    """Warn where many questions have a unanimous answer that is not normalized.

    The official script compares it as written: where all annotators wrote `Yes`, `yes` is wrong. VQAv2 has few of them.
    """
    counts = Counter(example.answers[0] for example in val if example.answers)
    odd = {name: count for name, count in counts.items() if normalize_answer(name) != name}
    if sum(odd.values()) > MAX_ODD_SHARE * counts.total():
        name = max(odd, key=lambda name: odd[name])
        warnings.warn(
            f"{source}: unanimous answers that no model gives: got {sum(odd.values())} of {counts.total()} questions, such "
            f"as {name!r}. VQA's metric counts {normalize_answer(name)!r} as wrong there. Write the answers in that form",
            stacklevel=2,
        )


def halve(val: Sequence[VQAExample], source: str, bad: BadExamples) -> tuple[tuple[VQAExample, ...], tuple[VQAExample, ...]]:
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
    """Return the answers that a model chooses from: those of at least `min_count` questions, in first-seen order.

    There are at least two; the index is the class. Without `min_count` it is the largest threshold up to VQAv2's nine that
    leaves at least 90 % of the questions answerable and at least two answers.
    """
    counts = Counter(example.answer for part in parts for example in part)
    if len(counts) < 2:
        raise ValueError(
            f"too few different answers: got {some(list(counts)) or 'none'}, expected two or more to choose from"
        )
    total, second = counts.total(), counts.most_common(2)[1][1]
    if min_count is None:
        min_count = 1
        for threshold in range(min(VQAV2_MIN_COUNT, second), 1, -1):
            if sum(count for count in counts.values() if count >= threshold) >= KEPT_SHARE * total:
                min_count = threshold
                break
    if not 1 <= min_count <= second:
        raise ValueError(f"`min_count` leaves too few answers: got {min_count}, expected 1..{second}, or None to choose it")
    return tuple(answer for answer, count in counts.items() if count >= min_count)
