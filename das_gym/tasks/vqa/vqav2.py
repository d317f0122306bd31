"""Reads VQAv2, and any data set in its format, from the official files.

A data root holds, for train2014 and val2014 each, `v2_OpenEnded_mscoco_{split}_questions.json`,
`v2_mscoco_{split}_annotations.json` and the images `{split}/COCO_{split}_{image_id:012d}.jpg`. VQA v1, whose names lack
the `v2_`, is read as well. What was read from large files is kept in the cache folder until they change.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from das_gym.data.checks import BadExamples, data_folder
from das_gym.data.images import SUFFIXES, ImageFile, files_in
from das_gym.data.splits import Splits
from das_gym.tasks.vqa.accuracy import normalize_answer
from das_gym.tasks.vqa.examples import VQAExample, VQATable
from das_gym.tasks.vqa.vqav2_cache import cached_columns
from das_gym.tasks.vqa.vqav2_files import SPLITS, UNANSWERED, PairOfFiles, find_file, some

HOLDS = "VQAv2's JSON files and images"

VQAV2_MIN_COUNT = 9
"""VQAv2's answer vocabulary holds the answers given to at least nine questions."""

MOST_ODD = 0.05
"""Share of the questions that may have an unanimous answer in another spelling than models have it."""

KEPT_SHARE = 0.9
"""Least share of the questions that a vocabulary of the default threshold can answer."""


@dataclass(frozen=True, slots=True)
class CocoImages:
    """COCO's image files by image id.

    Attributes:
        folder: The folder of one split.
        split: Its name, which the files repeat.
        suffix: What their names end in.
        others: Names that end otherwise, without and with what they end in.
    """

    folder: Path
    split: str
    suffix: str = ".jpg"
    others: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> CocoImages:
        """Those of a folder that is called as its split, by any of the usual suffixes."""
        names = [Path(name) for name in sorted(files_in(folder)) if name.startswith(f"COCO_{folder.name}_")]
        usual = [name for name in names if name.suffix.lower() in SUFFIXES]
        if not usual:
            return cls(folder, folder.name)
        ((most, _),) = Counter(name.suffix for name in usual).most_common(1)
        of_most = {name.stem for name in usual if name.suffix == most}
        return cls(folder, folder.name, most, {name.stem: name.name for name in usual if name.stem not in of_most})

    def __call__(self, place: int) -> ImageFile:
        """The image of an id."""
        return ImageFile(self.folder / self._name(place))

    def missing(self, places: Sequence[int]) -> list[int]:
        """Those that are not in the folder, by one listing of it."""
        there = files_in(self.folder)
        return [place for place in places if self._name(place) not in there]

    def _name(self, image_id: int) -> str:
        stem = f"COCO_{self.split}_{image_id:012d}"
        return self.others.get(stem, stem + self.suffix)


def in_reward_split(image_id: int) -> bool:
    """Whether an image of val2014 belongs to the reward split (else to test).

    It is the lowest bit of the 8-byte BLAKE2b hash of the decimal image id: the same for ever, whatever else there is.
    """
    return bool(hashlib.blake2b(str(image_id).encode(), digest_size=8).digest()[-1] & 1)


def load_vqav2(data_root: str | Path, on_bad_example: str = "raise") -> Splits[VQAExample]:
    """Read a data set in VQAv2's format: train2014 to train, the images of val2014 halved into reward and test.

    Args:
        data_root: The folder described at the top of this module.
        on_bad_example: `raise`, or `skip` to leave bad entries out; then every image is decoded once, to see that it can be.

    Returns:
        The three splits, each in the order of its questions file.

    Raises:
        FileNotFoundError: The folder, a file or an image is missing.
        ValueError: A file is damaged or does not fit its format, train2014 has fewer than two different answers, or
            val2014 has too few images to halve.
    """
    bad = BadExamples(on_bad_example)
    train = read_vqav2(data_root, "train2014", bad)
    check_answers(train, find_file(data_folder(data_root, HOLDS), "train2014", "annotations"), bad)
    val = read_vqav2(data_root, "val2014", bad)
    warn_of_spelling(val, find_file(data_folder(data_root, HOLDS), "val2014", "annotations"))
    reward, test = halves(val, str(data_root), bad)
    return Splits(train, reward, test, bad.lines, bad.count)


def read_vqav2(data_root: str | Path, split: str, bad: BadExamples | None = None) -> VQATable:
    """Read the questions of one split, with their annotations and their images' paths.

    Args:
        data_root: The folder described at the top of this module.
        split: `train2014` or `val2014`; or `test2015` or `test-dev2015`, whose examples have no answers.
        bad: Told of every bad entry; None raises at the first.

    Returns:
        The examples, in the order of the questions file.

    Raises:
        FileNotFoundError: The folder, a file or an image is missing.
        ValueError: A file is damaged or does not fit its format, or questions and annotations do not pair up.
    """
    if split not in (*SPLITS, *UNANSWERED):
        raise ValueError(f"split={split!r} is none of {', '.join((*SPLITS, *UNANSWERED))}")
    root, bad = data_folder(data_root, HOLDS), bad or BadExamples()
    bad.new_file()
    answered = split in SPLITS
    questions = find_file(root, split, "questions")
    files = PairOfFiles(questions, find_file(root, split, "annotations") if answered else questions, bad)
    read = files.read if answered else files.read_questions
    columns = cached_columns([files.questions, files.annotations], bad, read)
    images = CocoImages.of(root / UNANSWERED.get(split, split))
    if not images.folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {images.folder}; unpack the images there, named like "
            f"{images(int(columns.image_ids[0])).path.name}"
        )
    return drop_broken(VQATable.whole(split, columns, images), files.questions, bad)


def check_answers(train: VQATable, path: Path, bad: BadExamples) -> None:
    """Refuse training examples of one answer only, read from `path`; `bad` knows what was left out of it."""
    answers = train.answer_counts()
    if len(answers) < 2:
        raise ValueError(
            f"{path}: every question has the answer {next(iter(answers))!r}; VQA needs at least two different answers "
            f"(multiple_choice_answer) to choose from{bad.first_left_out}"
        )


def warn_of_spelling(val: VQATable, path: Path) -> None:
    """Warn where many questions, read from `path`, have an unanimous answer that no model gives: theirs are normalised.

    The official script compares it as written: `Yes` of all annotators makes `yes` wrong. VQAv2 has few of them.
    """
    columns = val.columns
    first = columns.answers[columns.answer_ends[:-1][np.diff(columns.answer_ends) > 0]]  # others are normalised already
    codes, counts = np.unique(first, return_counts=True)
    odd = {columns.names[code]: count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)}
    odd = {name: count for name, count in odd.items() if normalize_answer(name) != name}
    if sum(odd.values()) > MOST_ODD * len(first):
        name = max(odd, key=lambda name: odd[name])
        warnings.warn(
            f"{path}: to {sum(odd.values())} of {len(first)} questions all annotators gave an answer in a spelling that no "
            f"model has, such as {name!r}; VQA's official script counts {normalize_answer(name)!r} wrong: write it so",
            stacklevel=2,
        )


def halves(val: VQATable, source: str, bad: BadExamples) -> tuple[VQATable, VQATable]:
    """The reward and the test examples of val2014, by image.

    Args:
        val: All of val2014.
        source: Names the data in errors.
        bad: Knows what was left out of val2014.

    Raises:
        ValueError: One of the two would be empty.
    """
    image_ids, inverse = np.unique(val.image_ids(), return_inverse=True)
    of_image = np.array([in_reward_split(image_id) for image_id in image_ids.tolist()])
    in_reward = of_image[inverse]
    if in_reward.all() or not in_reward.any():
        empty = "test" if in_reward.all() else "reward"
        raise ValueError(
            f"{source}: the images of val2014 are divided between the reward and the test split by image_id, and all "
            f"{len(image_ids)} fall on one side, so the {empty} split is empty; add images to val2014 (twenty will nearly "
            f"always do){bad.first_left_out}"
        )
    return val.take(in_reward), val.take(~in_reward)


def drop_broken(table: VQATable, source: Path, bad: BadExamples) -> VQATable:
    """The examples whose images can be used.

    Args:
        table: The examples.
        source: The file that they come from, for errors.
        bad: Told of every example without an image that can be used.

    Raises:
        FileNotFoundError: With the policy `raise`, an image is missing.
        ValueError: With the policy `skip`, no example is left.
    """
    places = np.unique(table.places()).tolist()
    broken = _undecodable(table, places, bad) if bad.skips else _missing(table, places)
    if not broken:
        return table
    is_broken = np.isin(table.places(), list(broken))
    for example, place in zip(table.take(is_broken), table.places()[is_broken].tolist(), strict=True):
        bad.report_broken(f"{source}: question_id {example.question_id}", broken[place], len(broken), len(places))
    left = table.take(~is_broken)
    bad.require(left, str(source))
    return left


def _missing(table: VQATable, places: list[int]) -> dict[int, Exception]:
    missing = table.image_at.missing(places)
    if not missing:
        return {}
    folder = Path(table.image_at(missing[0]).key).parent
    there = f"that folder holds {some(sorted(files_in(folder)), 3) or 'no files'}"
    return {place: FileNotFoundError(f"there is no image {table.image_at(place).key}; {there}") for place in missing}


def _undecodable(table: VQATable, places: list[int], bad: BadExamples) -> dict[int, Exception]:
    images = {place: table.image_at(place) for place in places}
    broken = bad.broken_images(images.values())
    return {place: broken[image.key] for place, image in images.items() if image.key in broken}


def splits_vocabulary(splits: Splits[VQAExample], min_count: int | None = None) -> tuple[str, ...]:
    """`answer_vocabulary` of train and val together, in the order of their files, as VQAv2's field builds it.

    Which answers are frequent is all that it tells of the reward and the test split, the halves of val.
    """
    reward, test = splits.reward, splits.test
    if isinstance(reward, VQATable) and isinstance(test, VQATable) and reward.columns is test.columns:
        return answer_vocabulary(splits.train, reward.joined(test), min_count=min_count)
    return answer_vocabulary(splits.train, reward, test, min_count=min_count)


def answer_vocabulary(*parts: Sequence[VQAExample], min_count: int | None = None) -> tuple[str, ...]:
    """The answers a model chooses from: those given to at least `min_count` questions, in first-seen order.

    Args:
        *parts: The examples to learn the answers from, one part after the other; their `answer` counts.
        min_count: Questions that an answer must be given to, 1 or more. None takes the largest threshold up to VQAv2's nine
            that leaves at least 90 % of the questions answerable and at least two answers.

    Returns:
        The answers, each once, at least two; the index is the class.

    Raises:
        ValueError: Fewer than two answers remain, or `min_count` is less than 1.
    """
    if min_count is not None and min_count < 1:
        raise ValueError(f"min_count={min_count}; pass 1 or more, or None to have it chosen")
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.answer_counts() if isinstance(part, VQATable) else Counter(e.answer for e in part))
    if len(counts) < 2:
        raise ValueError(
            f"the {counts.total()} examples have {len(counts)} different answers, {some(map(repr, counts))}; VQA "
            "needs at least two to choose from: pass other examples"
        )
    second = counts.most_common(2)[1][1]
    threshold = _default_min_count(counts, second) if min_count is None else min_count
    if threshold > second:
        raise ValueError(
            f"min_count={min_count} leaves fewer than two answers of {len(counts)}; the second most frequent was given "
            f"to {second} of {counts.total()} questions: pass min_count={second} or less, or None to have it chosen"
        )
    return tuple(answer for answer, count in counts.items() if count >= threshold)


def _default_min_count(counts: Counter[str], most: int) -> int:
    """The largest threshold up to nine and `most` that leaves KEPT_SHARE of the questions answerable; 1 always does."""
    total = counts.total()
    for threshold in range(min(VQAV2_MIN_COUNT, most), 1, -1):
        if sum(count for count in counts.values() if count >= threshold) >= KEPT_SHARE * total:
            return threshold
    return 1
