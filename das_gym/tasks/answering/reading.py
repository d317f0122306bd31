"""Read questions with answers in whatever format a folder has them; the format is recognized from the files."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from das_gym.data.entries import BadExamples, describe_folder, first_few
from das_gym.data.splits import LazySequence, Splits
from das_gym.files import absolute_path
from das_gym.shapes import bundled_root
from das_gym.tasks.answering.examples import TRUE_OR_FALSE, AnswerExample, add_instruction
from das_gym.tasks.answering.files import QUESTIONS, check_companions, data_file, group_by_part, json_files
from das_gym.tasks.answering.published import (
    PID_SPLITS,
    PROBLEMS,
    class_folders,
    load_class_folders,
    load_llava,
    load_questions,
    load_scienceqa,
    load_slake,
)
from das_gym.tasks.answering.tables import STATE, load_tables, saved_shards, shards_in
from das_gym.tasks.nlvr2 import FOLDERS as NLVR2_FOLDERS
from das_gym.tasks.nlvr2 import NLVR2Example, load_nlvr2
from das_gym.tasks.vqa.files import OUT_OF_VOCABULARY, SPLITS, VQAExample, load_vqa, read_vqav2

FORMATS = (
    "LLaVA's conversations (train.json, test.json, ..., entries with image and conversations), parquet files or a folder of "
    "`save_to_disk`, one folder of images per class, or the files of Slake, VQAv2, NLVR2 or ScienceQA; questions without "
    f"answers need `split={QUESTIONS}` of `adapt predict`"
)

VQAV2 = "VQAv2"
"""The format whose parts have official names."""

TRUTH_ANSWERS = ("true", "false")

MAX_QUESTION_TYPES = 20
"""Examples are grouped by question type, or by answer type where there are more types than this (VQAv2 has 65)."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set that was recognized.

    Attributes:
        format: The format.
        files: Each may be passed as the data root to read this data set.
        load: Reads it, given `on_bad_example`, and `columns` where that is a setting.
        has_columns: Whether `columns` is a setting.
    """

    format: str
    files: tuple[Path, ...]
    load: Callable[..., Splits[AnswerExample]]
    has_columns: bool = False


def load_answers(
    data_root: str | Path | None, on_bad_example: str = "raise", columns: str | None = None
) -> Splits[AnswerExample]:
    """Read the examples of a data set in any of `FORMATS`; arguments and errors are those of `Task.load_splits`.

    A folder with several data sets is named by a file of one of them. `columns` are those of `load_tables`.
    """
    bundled = DataSet("the bundled data", (), lambda policy: load_prompted_vqa(bundled_root("vqa"), policy))
    found = bundled if data_root is None else _find(_existing(data_root))
    if columns is None:
        return found.load(on_bad_example)
    if not found.has_columns:
        raise ValueError(f"`columns` is not supported by {found.format}: got {columns!r}. Leave it out")
    return found.load(on_bad_example, columns)


def load_answers_part(data_root: str | Path | None, part: str, on_bad_example: str = "raise") -> Sequence[AnswerExample]:
    """Read a part of a data set by its official name, with or without answers; ValueError for unknown names.

    It is `train2014`, `val2014`, `test2015` or `test-dev2015` of VQAv2, whose files are enough; or `questions`: a file
    of LLaVA's for evaluation, or a folder with one, see `das_gym.tasks.answering.published.load_questions`.
    """
    if data_root is None:
        return load_prompted_part(bundled_root("vqa"), part, on_bad_example)
    root = _existing(data_root)
    folder = root if root.is_dir() else root.parent
    if part == QUESTIONS:
        files = [file.path for file in json_files(folder) if file.kind == QUESTIONS and root in (folder, file.path)]
        if len(files) != 1:
            got = first_few([str(file) for file in files]) or "none"
            raise ValueError(f"{root}: got {got}, expected one file of questions alone with question_id, text and image")
        return load_questions(files[0], folder, on_bad_example)
    found = _find(root)
    if found.format != VQAV2:
        raise ValueError(f"unknown `split` of {found.format} in {root}: got {part!r}, expected train, reward or test")
    return load_prompted_part(folder, part, on_bad_example)


def _existing(data_root: str | Path) -> Path:
    root = absolute_path(data_root)
    if not root.exists():
        raise FileNotFoundError(f"`data_root` does not exist: got {str(data_root)!r}, expected a folder with {FORMATS}")
    return root


def _find(root: Path) -> DataSet:
    if root.is_file():
        return _find_file(root)
    found = list(_data_sets_in(root))
    if not found and not json_files(root):  # else damaged files are meant
        parts = class_folders(root)
        if parts:
            found = [DataSet("folders of classes", (root,), partial(load_class_folders, parts, root))]
    if not found:
        contents = "".join(f"; {file.path.name} holds {file.content}" for file in json_files(root)[:3])
        raise ValueError(
            f"{root} holds no data in a known format: got {describe_folder(root)}{contents}, expected {FORMATS}"
        )
    if len(found) > 1:
        several = first_few([f"{one.files[0]} ({one.format})" for one in found], 6)
        raise ValueError(f"{root} holds {len(found)} data sets: {several}. Pass one of these as `data_root`")
    return found[0]


def detect_format(folder: Path) -> str:
    """Return the first format of which a folder holds data; empty where it holds none, or files that exclude each other."""
    with contextlib.suppress(ValueError):
        found = next(_data_sets_in(folder), None)
        if found is not None:
            return found.format
        return "one folder of images per class" if class_folders(folder) else ""
    return ""


def _find_file(path: Path) -> DataSet:
    if path.suffix == ".arrow" and not (path.parent / STATE).is_file():
        load = load_prompted_nlvr2 if path.name.startswith("nlvr2") else load_prompted_vqa
        return DataSet("arrow tables", (path,), partial(load, path))
    for found in _data_sets_in(path.parent):
        if path in found.files:
            return found
    content = f": it holds {data_file(path).content}" if path.suffix in (".json", ".jsonl") else ""
    raise ValueError(
        f"`data_root` {path} is not in a known format{content}, expected a file of {FORMATS}. For texts, choose task=text"
    )


def _data_sets_in(folder: Path) -> Iterator[DataSet]:
    scienceqa = (folder / PROBLEMS, folder / PID_SPLITS)
    if all(path.is_file() for path in scienceqa):
        yield DataSet("ScienceQA", scienceqa, partial(load_scienceqa, folder))
    vqa = (*sorted(folder.glob("*mscoco_*_questions.json")), *sorted(folder.glob("vqav2_*.arrow")))
    if vqa:
        yield DataSet(VQAV2, vqa, partial(load_prompted_vqa, folder))
    for name, shards in (
        ("parquet files", shards_in(folder, ".parquet")),
        ("a folder of save_to_disk", saved_shards(folder)),
    ):
        if shards:
            paths = tuple(path for split in shards.values() for path in split)
            yield DataSet(name, paths, partial(load_tables, shards, folder), has_columns=True)
    nlvr2 = [path for inner in NLVR2_FOLDERS if (path := folder / inner / "train.json").is_file()]
    nlvr2 = [path for path in nlvr2 if data_file(path).kind == "nlvr2"] + sorted(folder.glob("nlvr2_*.arrow"))
    if nlvr2:
        yield DataSet("NLVR2", tuple(nlvr2), partial(load_prompted_nlvr2, folder))
    others = json_files(folder)
    for kind, name, load in (("llava", "LLaVA's conversations", load_llava), ("slake", "Slake's own files", load_slake)):
        for members in group_by_part([file for file in others if file.kind == kind]):
            check_companions(members, others)
            files = {part: file.path for part, file in members.items()}
            yield DataSet(name, tuple(files.values()), partial(load, files, folder))


def load_prompted_vqa(data_root: str | Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read VQAv2's files or arrow tables: each question with LLaVA's instruction, and the answers of all annotators.

    The reference answer is the most frequent one. Questions whose every answer is empty when it is normalized, such as `a`,
    are skipped and counted whatever `on_bad_example` is.
    """
    splits = load_vqa(data_root, on_bad_example)
    parts = (splits.train, splits.reward, splits.test)
    kept = [_answerable(part) for part in parts]
    skipped = sum(map(len, parts)) - sum(map(len, kept))
    lines = [f"{data_root}: {skipped} questions whose every answer is empty when it is normalized"] if skipped else []
    make = partial(_example, by_question=_few_question_types(kept))
    train, reward, test = (LazySequence(part, make) for part in kept)
    return Splits(train, reward, test, (*splits.left_out, *lines))


def load_prompted_part(data_root: str | Path, part: str, on_bad_example: str = "raise") -> Sequence[AnswerExample]:
    """Read a part of VQAv2's files as `load_prompted_vqa` does: `train2014`, `val2014`, `test2015`, `test-dev2015`."""
    read: Sequence[VQAExample] = read_vqav2(data_root, part, BadExamples(on_bad_example))
    if part in SPLITS:
        read = _answerable(read)
    return LazySequence(read, partial(_example, by_question=_few_question_types([read])))


def _few_question_types(parts: Sequence[Sequence[VQAExample]]) -> bool:
    types = {example.question_type for part in parts for example in part}
    return 0 < len(types - {""}) <= MAX_QUESTION_TYPES


def _answerable(part: Sequence[VQAExample]) -> list[VQAExample]:
    return [example for example in part if example.answer or any(example.answers)]


def _example(example: VQAExample, by_question: bool) -> AnswerExample:
    counts = Counter(answer for answer in example.answers if answer not in ("", OUT_OF_VOCABULARY))
    return AnswerExample(
        key=example.key,
        images=(example.image,),
        question=add_instruction(example.question),
        answer=example.answer or next((answer for answer, _ in counts.most_common(1)), ""),
        answers=example.answers,
        kind=example.question_type if by_question else example.answer_type,
        question_id=example.question_id,
    )


def load_prompted_nlvr2(data_root: str | Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read NLVR2's files or arrow tables: each sentence with its left and right image, to be called true or false."""
    splits = load_nlvr2(data_root, on_bad_example)
    train, reward, test = (LazySequence(part, _judgement) for part in (splits.train, splits.reward, splits.test))
    return Splits(train, reward, test, splits.left_out)


def _judgement(example: NLVR2Example) -> AnswerExample:
    return AnswerExample(
        key=example.key,
        images=example.images,
        question=add_instruction(example.sentence, TRUE_OR_FALSE),
        answer=TRUTH_ANSWERS[0] if example.label else TRUTH_ANSWERS[1],
        options=TRUTH_ANSWERS,
    )
