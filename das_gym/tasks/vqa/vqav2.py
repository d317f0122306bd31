"""Read VQAv2, and any data set in its format, from the official files.

A data root holds, for train2014 and val2014 each, `v2_OpenEnded_mscoco_{split}_questions.json`,
`v2_mscoco_{split}_annotations.json` and the images `{split}/COCO_{split}_{image_id:012d}.jpg`. Content of large files
is kept in the cache folder until they change.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import data_folder, find_file, some
from das_gym.data.images import SUFFIXES, ImageFile, files_in
from das_gym.data.splits import Splits
from das_gym.tasks.vqa.accuracy import normalize_answer
from das_gym.tasks.vqa.cache import cached_columns
from das_gym.tasks.vqa.examples import VQAExample, VQATable
from das_gym.tasks.vqa.vqav2_files import SPLITS, UNANSWERED, read_columns

VQAV2_MIN_COUNT = 9
"""VQAv2's answer vocabulary holds the answers given to at least nine questions."""

MAX_ODD_SHARE = 0.05
"""Share of questions with a unanimous answer that is not normalized from which a warning is given."""

KEPT_SHARE = 0.9
"""Least share of the questions that a vocabulary of the default threshold can answer."""


@dataclass(frozen=True, slots=True)
class CocoImages:
    """COCO's image files by image id.

    Attributes:
        folder: The folder of one split, whose name the files repeat.
        names: Names of the files that do not end in `.jpg`, by the name without suffix.
    """

    folder: Path
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> CocoImages:
        """List the images of a folder; `.jpg` wins where an image has several suffixes."""
        found = [Path(name) for name in sorted(files_in(folder)) if name.startswith(f"COCO_{folder.name}_")]
        jpg = {path.stem for path in found if path.suffix == ".jpg"}
        others = [path for path in found if path.suffix.lower() in SUFFIXES and path.stem not in jpg]
        return cls(folder, {path.stem: path.name for path in others})

    def __call__(self, image_id: int) -> ImageFile:
        """Return the image of an id."""
        stem = f"COCO_{self.folder.name}_{image_id:012d}"
        return ImageFile(self.folder / self.names.get(stem, f"{stem}.jpg"))


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


def read_vqav2(data_root: str | Path, split: str, bad: BadExamples | None = None) -> VQATable:
    """Read the questions of one split, in the order of their file, with their annotations and the paths of their images.

    The split is `train2014` or `val2014`; or `test2015` or `test-dev2015`, whose examples have no answers.
    """
    if split not in (*SPLITS, *UNANSWERED):
        raise ValueError(f"unknown `split`: got {split!r}, expected {', '.join((*SPLITS, *UNANSWERED))}")
    root, bad = data_folder(data_root, "VQAv2's JSON files and images"), bad or BadExamples()
    questions = find_file(root, [f"v2_OpenEnded_mscoco_{split}_questions.json"])
    annotations = find_file(root, [f"v2_mscoco_{split}_annotations.json"]) if split in SPLITS else None
    files = [path for path in (questions, annotations) if path]
    columns = cached_columns(files, bad, lambda: read_columns(questions, annotations, bad))
    images = CocoImages.of(root / UNANSWERED.get(split, split))
    if not images.folder.is_dir():
        name = images(int(columns.image_ids[0])).path.name
        raise FileNotFoundError(f"{images.folder} does not exist, expected a folder of images such as {name}")
    return drop_broken(VQATable.whole(split, columns, images), questions, bad)


def _warn_about_spelling(val: VQATable, source: str) -> None:
    """Warn where many questions have a unanimous answer that is not normalized.

    The official script compares it as written: where all annotators wrote `Yes`, `yes` is wrong. VQAv2 has few of them.
    """
    columns = val.columns
    first = columns.answers[columns.answer_ends[:-1][np.diff(columns.answer_ends) > 0]]
    counts = Counter(columns.names[code] for code in first.tolist())
    odd = {name: count for name, count in counts.items() if normalize_answer(name) != name}
    if sum(odd.values()) > MAX_ODD_SHARE * len(first):
        name = max(odd, key=lambda name: odd[name])
        warnings.warn(
            f"{source}: unanimous answers that no model gives: got {sum(odd.values())} of {len(first)} questions, such as "
            f"{name!r}. VQA's metric counts {normalize_answer(name)!r} as wrong there. Write the answers in that form",
            stacklevel=2,
        )


def halve(val: VQATable, source: str, bad: BadExamples) -> tuple[VQATable, VQATable]:
    """Return the reward and the test examples of val2014, divided by image; raise ValueError where one would be empty."""
    image_ids, inverse = np.unique(val.columns.image_ids[val.rows], return_inverse=True)
    in_reward = np.array([in_reward_split(image_id) for image_id in image_ids.tolist()])[inverse]
    if in_reward.all() or not in_reward.any():
        empty = "test" if in_reward.all() else "reward"
        raise ValueError(
            f"{source}: too few images in val2014: got {len(image_ids)}, of which none belongs to the {empty} split, which "
            f"image_id decides, expected twenty or more{bad.last_skipped}"
        )
    return val.take(in_reward), val.take(~in_reward)


def drop_broken(table: VQATable, source: Path, bad: BadExamples) -> VQATable:
    """Return the examples whose images can be used, as `BadExamples.drop_broken` does, without building all examples."""
    images = {number: table.image_at(number) for number in np.unique(table.images()).tolist()}
    errors = bad.broken_images(images.values())
    broken = {number: errors[image.key] for number, image in images.items() if image.key in errors}
    if not broken:
        return table
    is_broken = np.isin(table.images(), list(broken))
    for example, number in zip(table.take(is_broken), table.images()[is_broken].tolist(), strict=True):
        bad.report_broken(f"{source}: question_id {example.question_id}", broken[number], len(broken))
    kept = table.take(~is_broken)
    bad.require(kept, str(source))
    return kept


def splits_vocabulary(splits: Splits[VQAExample], min_count: int | None = None) -> tuple[str, ...]:
    """Return the `answer_vocabulary` of train and val together, in the order of their files, as VQA's field builds it."""
    reward, test = splits.reward, splits.test
    if isinstance(reward, VQATable) and isinstance(test, VQATable) and reward.columns is test.columns:
        val = replace(reward, rows=np.union1d(reward.rows, test.rows))
        return answer_vocabulary(splits.train, val, min_count=min_count)
    return answer_vocabulary(splits.train, reward, test, min_count=min_count)


def answer_vocabulary(*parts: Sequence[VQAExample], min_count: int | None = None) -> tuple[str, ...]:
    """Return the answers that a model chooses from: those of at least `min_count` questions, in first-seen order.

    There are at least two; the index is the class. Without `min_count` it is the largest threshold up to VQAv2's nine that
    leaves at least 90 % of the questions answerable and at least two answers.
    """
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.answer_counts() if isinstance(part, VQATable) else Counter(e.answer for e in part))
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
