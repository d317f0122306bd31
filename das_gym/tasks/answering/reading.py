"""Reads questions with answers in whatever format a folder has them; which one it is, is told by looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from das_gym.data.splits import Splits
from das_gym.files import absolute
from das_gym.shapes.vqa import shapes_root
from das_gym.tasks.answering.class_folders import class_folders, load_class_folders
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.image_files import MOST_FOLDERS, subfolders
from das_gym.tasks.answering.json_files import ALL, DataFile, check_companions, data_file, data_sets, json_files
from das_gym.tasks.answering.llava_json import load_llava, load_questions
from das_gym.tasks.answering.prompted import load_prompted_nlvr2, load_prompted_part, load_prompted_vqa
from das_gym.tasks.answering.scienceqa import PID_SPLITS, PROBLEMS, load_scienceqa
from das_gym.tasks.answering.slake import load_slake
from das_gym.tasks.nlvr2.files import FOLDERS as NLVR2_FOLDERS

RECOGNISED = (
    "LLaVA's conversations (train.json, val.json, test.json, or one file: lists of entries with 'conversations'; or .jsonl)",
    "Slake's own files",
    "VQAv2's questions and annotations",
    "NLVR2's train.json with test1.json or dev.json",
    f"ScienceQA's {PROBLEMS} with {PID_SPLITS}",
    "two or more folders of images, one a class",
    "arrow tables vqav2_*.arrow or nlvr2_*.arrow",
)
"""What a data root may hold."""

DEPTH = 2
"""How deep below the data root files are looked for."""

QUESTIONS = "questions"
"""The part that a file of LLaVA's for evaluation is, which has no answers."""

QUESTIONS_ONLY = (
    "has questions without answers; add the file with the answers of gpt, in 'conversations', or have them answered by "
    f"`adapt predict` with split={QUESTIONS}"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A data set that can be read.

    Attributes:
        what: The format, in words.
        files: What may be named as the data root to have it read: its files, or a folder.
        load: Reads it, given `on_bad_example`.
        load_part: Reads a part by the name that the format has for it, given that and `on_bad_example`; None = it has none.
    """

    what: str
    files: tuple[Path, ...]
    load: Callable[[str], Splits[AnswerExample]]
    load_part: Callable[[str, str], Sequence[AnswerExample]] | None = None


def load_answers(data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """The examples of a data set in any format of `RECOGNISED`.

    Args:
        data_root: A folder; where it holds several data sets, a file of one of them. None is the bundled Shapes-VQA.
        on_bad_example: `raise`, or `skip`: leave bad entries out and tell of them in `Splits.left_out`; then every image is
            decoded once, to see that it can be.

    Returns:
        The three splits, no image in two of them.

    Raises:
        FileNotFoundError: The folder or an image is missing.
        ValueError: Nothing is recognised, several data sets are, or what is there is damaged; the text names file and entry.
    """
    if data_root is None:
        return load_prompted_vqa(shapes_root(), on_bad_example)
    return _find(_there(data_root)).load(on_bad_example)


def load_answers_part(data_root: str | Path | None, part: str, on_bad_example: str = "raise") -> Sequence[AnswerExample]:
    """A part of a data set by the name that its format has for it, answers known or not.

    Args:
        data_root: As for `load_answers`; or a file of LLaVA's for evaluation, or a folder with one.
        part: `train2014`, `val2014`, `test2015` or `test-dev2015` of VQAv2, for which nothing else has to be there; or
            `questions`: a file of LLaVA's for evaluation, see `das_gym.tasks.answering.llava_json.load_questions`.
        on_bad_example: As for `load_answers`.

    Raises:
        FileNotFoundError, ValueError: As `load_answers`; or the data have no such part.
    """
    if data_root is None:
        return load_prompted_part(shapes_root(), part, on_bad_example)
    root = _there(data_root)
    if part == QUESTIONS:
        folder = root if root.is_dir() else root.parent
        files = [file.path for file in json_files(folder) if file.kind == QUESTIONS and root in (folder, file.path)]
        if len(files) != 1:
            several = f"files with questions alone, {', '.join(map(str, files))}: pass one as data_root"
            raise ValueError(f"{root} holds {several if files else 'no file of lines with question_id, text and image'}")
        return load_questions(files[0], folder, on_bad_example)
    found = _find(root)
    if found.load_part is None:
        raise ValueError(
            f"split={part!r}: {root} holds {found.what}, of which there are train, reward and test; {QUESTIONS} where "
            "questions alone lie there"
        )
    return found.load_part(part, on_bad_example)


def _there(data_root: str | Path) -> Path:
    root = absolute(data_root)
    if not root.exists():
        raise FileNotFoundError(f"data_root={str(data_root)!r} is not there; name a folder with {_listed(RECOGNISED)}")
    return root


def _listed(things: Sequence[str]) -> str:
    return f"{'; '.join(things[:-1])}; or {things[-1]}"


def _find(root: Path) -> Found:
    """The one data set that a data root holds, or names."""
    if root.is_file():
        return _named(root)
    found, files = _shallowest(_files_in, root), list[DataFile]()
    if not found:
        files = [file for level in islice(_levels(root), 2) for folder in level for file in json_files(folder)]
        if not any(file.part != ALL or file.entries for file in files):  # else these are what somebody meant
            found = _shallowest(_classes_in, root)
    if not found:
        raise ValueError(f"{root} holds no data that is recognised{_seen(root, files)}; it may hold {_listed(RECOGNISED)}")
    if len(found) > 1:
        several = ", ".join(f"{one.files[0]} ({one.what})" for one in found[:6])
        raise ValueError(f"{root} holds {len(found)} data sets: {several}; pass one of these as data_root")
    return found[0]


def _shallowest(look: Callable[[Path, Path], Iterator[Found]], root: Path) -> list[Found]:
    """What is found in the first level that has anything."""
    by_level = ([one for folder in level for one in look(folder, root)] for level in _levels(root))
    return next(filter(None, by_level), [])


def _levels(root: Path) -> Iterator[list[Path]]:
    """The folder, those in it, those in these."""
    level = [root]
    for _ in range(DEPTH + 1):
        yield level
        level = [inner for folder in level for inner in subfolders(folder)][:MOST_FOLDERS]


def _seen(root: Path, files: Sequence[DataFile]) -> str:
    """What is there instead, for errors."""
    if files:
        looks = [f"{file.path.name} {QUESTIONS_ONLY if file.kind == 'questions' else file.looks}" for file in files[:3]]
        return f": {', '.join(looks)}"
    there = sorted(path.name for path in root.iterdir())
    return f": there is {', '.join(there[:6]) or 'nothing'}{' and more' if len(there) > 6 else ''}"


def _named(path: Path) -> Found:
    """The data set that a file belongs to."""
    if path.suffix == ".arrow":
        load = load_prompted_nlvr2 if path.name.startswith("nlvr2") else load_prompted_vqa
        return Found("arrow tables", (path,), partial(load, path))
    found = [one for one in _files_in(path.parent, path.parent, path) if path in one.files]
    if found:
        return found[0]
    file = next((file for file in json_files(path.parent) if file.path == path), None)
    looks = file.looks if file else "does not end with .json, .jsonl or .arrow"
    looks = QUESTIONS_ONLY if file and file.kind == "questions" else looks
    raise ValueError(f"data_root={str(path)!r} {looks}; it may be a file of {_listed(RECOGNISED)}, or the folder of one")


def _files_in(folder: Path, root: Path, named: Path | None = None) -> Iterator[Found]:
    """The data sets whose files lie in a folder.

    Args:
        folder: The folder.
        root: The data root, in which images are looked for.
        named: A file that a person named: what other data sets of the folder are like does not matter.
    """
    scienceqa = (folder / PROBLEMS, folder / PID_SPLITS)
    if all(path.is_file() for path in scienceqa):
        yield Found("ScienceQA", scienceqa, partial(load_scienceqa, folder, root))
    vqa = (*sorted(folder.glob("*mscoco_*_questions.json")), *sorted(folder.glob("vqav2_*.arrow")))
    if vqa:
        yield Found("VQAv2", vqa, partial(load_prompted_vqa, folder), partial(load_prompted_part, folder))
    pairs = [path for inner in NLVR2_FOLDERS if _is_nlvr2(path := folder / inner / "train.json")]
    base = _nlvr2_root(folder, pairs[0].parent) if pairs else folder
    pairs += sorted(folder.glob("nlvr2_*.arrow"))
    if pairs:
        yield Found("NLVR2", tuple(pairs), partial(load_prompted_nlvr2, base))
    others = [file for file in json_files(folder) if named is None or file.path.parent == folder]
    for kind, what, load in (("llava", "LLaVA's conversations", load_llava), ("slake", "Slake's own files", load_slake)):
        for members in data_sets([file for file in others if file.kind == kind]):
            files = {part: file.path for part, file in members.items()}
            if named is None or named in files.values():
                check_companions(members, others)
            yield Found(what, tuple(files.values()), partial(load, files, root))


def _nlvr2_root(folder: Path, inner: Path) -> Path:
    """The folder with images from which NLVR2's reader finds the files in `inner`, which is `folder` or lies in it."""
    bases = [base for base in (inner, *inner.parents) if any(base / name == inner for name in NLVR2_FOLDERS)]
    within = [base for base in bases if base == folder or folder in base.parents]
    return next((base for base in within if (base / "images").is_dir() or (base / "train").is_dir()), folder)


def _is_nlvr2(path: Path) -> bool:
    return path.is_file() and data_file(path).kind == "nlvr2"


def _classes_in(folder: Path, root: Path) -> Iterator[Found]:
    """A folder of class folders."""
    del root
    parts = class_folders(folder)
    if parts:
        yield Found("folders of classes", (folder,), partial(load_class_folders, parts, folder))
