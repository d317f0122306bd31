"""Read data sets from their own files: Slake, ScienceQA, and folders of classes such as AID's.

Slake has `train.json`, `validate.json`, `test.json` and the images in `imgs`. An entry is a question with its answer,
`answer_type` OPEN or CLOSED, and `q_lang`. Only the English questions are read, 4,919 of train in Slake 1.0.

ScienceQA has `problems.json`, `pid_splits.json` and the images `{split}/{pid}/image.png`, in the folder of the files or in
`images`; about half of the problems have none. A problem is asked with its hint as context and its choices lettered, and
the answer is a letter, as in LLaVA-1.5. Val is the reward split.

Class folders are in the data root, or in `train`, `val` and `test` in it, as torchvision's `ImageFolder` has them. The
options are their names: `BareLand` and `bare_land` are both the class `bare land`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from das_gym.data.entries import (
    BadExamples,
    Fields,
    check_characters,
    check_fields,
    check_new,
    check_text,
    first_few,
    read_entries,
)
from das_gym.data.images import SUFFIXES, ImageFile, files_in
from das_gym.data.splits import Splits
from das_gym.files import read_json
from das_gym.tasks.answering.examples import (
    CLASS_QUESTION,
    LETTERS,
    AnswerExample,
    Conversation,
    divide,
    drop_broken,
    instructed,
    multiple_choice,
)
from das_gym.tasks.answering.files import IMAGE_FOLDERS, ImageFinder, plain_name, subfolders

LANGUAGE = "en"
"""Only questions of Slake in this language are read."""

_SLAKE_FIELDS: Fields = {"img_name": str, "question": str, "answer": (str, int)}

PROBLEMS = "problems.json"
PID_SPLITS = "pid_splits.json"

SPLITS = ("train", "val", "test")
"""The official splits that are read; the small ones are parts of them."""

_PROBLEM_FIELDS: Fields = {"question": str, "choices": list, "answer": int}

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of folders that hold the class folders of one part, and that part."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z\W_]+|[^\w\s]+")


def load_slake(files: Mapping[str, Path], root: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read the files of one data set; the arguments are those of `llava_json.load_llava`."""
    bad = BadExamples(on_bad_example)
    parts = {name: _read_slake(path, root, bad) for name, path in files.items()}
    return divide(parts, " and ".join(map(str, files.values())), bad)


def _read_slake(path: Path, root: Path, bad: BadExamples) -> list[Conversation]:
    finder = ImageFinder(path.parent, root)
    seen = dict[str, str]()

    def conversation(entry: Any, where: str) -> Conversation | None:
        if isinstance(entry, dict) and entry.get("q_lang", LANGUAGE) != LANGUAGE:
            return None
        check_fields(entry, _SLAKE_FIELDS, where)
        qid = " ".join(str(entry.get("qid", "")).split())
        # A missing or repeated qid is no key: the entry's position is taken.
        key = qid if qid and seen.setdefault(qid, where) == where else where.removeprefix(f"{path}: ")
        where = f"{where} (qid {qid})" if qid else where
        check_text(entry["question"], f"{where}: `question`")
        answer = check_text(str(entry["answer"]), f"{where}: `answer`")
        images = (finder.find(entry["img_name"], where),)
        kind = str(entry.get("answer_type") or "").strip()
        rounds = ((instructed(entry["question"]), answer),)
        return Conversation(where, f"{path.name}/{key}", images, (plain_name(entry["img_name"]),), rounds, kind=kind)

    return drop_broken(bad.parse(read_entries(path, bad), conversation), str(path), bad)


def load_scienceqa(folder: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read ScienceQA's files in a folder; errors are those of `Task.load_splits`."""
    bad = BadExamples(on_bad_example)
    finder = ImageFinder(folder, folder)
    seen = dict[str, str]()
    problems = read_json(folder / PROBLEMS)
    pids = read_json(folder / PID_SPLITS)
    if not isinstance(problems, dict):
        raise ValueError(f"{folder / PROBLEMS} has an unexpected JSON structure: got {problems!r:.30}, expected an object")
    listed = {split: pids[split] for split in SPLITS if isinstance(pids, dict) and isinstance(pids.get(split), list)}
    if not listed:
        got = first_few(list(pids)) if isinstance(pids, dict) else f"{pids!r:.30}"
        raise ValueError(f"{folder / PID_SPLITS} has no splits: got {got or 'nothing'}, expected lists train, val, test")

    def conversation(item: tuple[str, str], where: str) -> Conversation:
        split, pid = item
        if pid not in problems:
            raise ValueError(f"{where} is not in {PROBLEMS}: got {pid:.40}")
        check_new(seen, pid, "pid", where)
        return _problem(split, pid, problems[pid], f"{folder / PROBLEMS}: {pid}", finder)

    parts = {}
    for split, numbers in listed.items():
        places = ((f"{folder / PID_SPLITS}: {split}[{n}]", (split, str(pid))) for n, pid in enumerate(numbers))
        parts[split] = drop_broken(bad.parse(places, conversation), f"{folder / PID_SPLITS} ({split})", bad)
    return divide(parts, f"{folder / PROBLEMS} and {PID_SPLITS}", bad, published=True)


def _problem(split: str, pid: str, problem: Any, where: str, finder: ImageFinder) -> Conversation:
    check_fields(problem, _PROBLEM_FIELDS, where)
    choices = problem["choices"]
    answer = problem["answer"]
    hint = problem.get("hint") or ""
    check_text(problem["question"], f"{where}: `question`")
    image = problem.get("image") or ""
    check_fields({"hint": hint, "image": image}, {"hint": str, "image": str}, where)
    check_characters(hint, f"{where}: `hint`")
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{where}: wrong `choices`: got {len(choices)}, expected 2..{len(LETTERS)}")
    for choice in choices:
        check_text(choice, f"{where}: `choices`")
    if not 0 <= answer < len(choices):
        raise ValueError(f"{where}: wrong `answer`: got {answer}, expected 0..{len(choices) - 1}")
    names = (f"{split}/{pid}/{image}",) if image else ()  # every image is called image.png
    images = tuple(finder.find(name, where) for name in names)
    rounds = ((multiple_choice(problem["question"], hint, choices), LETTERS[answer]),)
    kind = str(problem.get("subject") or "").strip()
    return Conversation(where, f"{split}/{pid}", images, names, rounds, tuple(LETTERS[: len(choices)]), kind)


def class_name(folder: str) -> str:
    """Return the name of a folder in words: `BareLand`, `bare_land` and `bare-land` are `bare land`."""
    return " ".join(_WORD.findall(folder.replace("-", " "))).lower() or folder


def class_folders(root: Path) -> dict[str, dict[Path, list[str]]]:
    """Return {part: {class folder: names of images}}, part "" without folders of parts; ValueError for a part twice."""

    def classes_in(folder: Path) -> dict[Path, list[str]]:
        found = {}
        for path in subfolders(folder):
            names = sorted(n for n in files_in(path) if Path(n).suffix.lower() in SUFFIXES and not n.startswith("."))
            if names and path.name not in {*IMAGE_FOLDERS, *SPLIT_FOLDERS}:
                found[path] = names
        return found

    parts: dict[str, dict[Path, list[str]]] = {}
    for path in subfolders(root):
        if path.name in SPLIT_FOLDERS and (classes := classes_in(path)):
            if SPLIT_FOLDERS[path.name] in parts:
                raise ValueError(f"{root} has two folders for one part: `{path.name}` is one of them. Remove or merge them")
            parts[SPLIT_FOLDERS[path.name]] = classes
    parts = parts or {"": classes_in(root)}
    names = {path.name for classes in parts.values() for path in classes}
    return parts if len(names) > 1 else {}


def load_class_folders(
    parts: Mapping[str, Mapping[Path, Sequence[str]]], root: Path, on_bad_example: str = "raise"
) -> Splits[AnswerExample]:
    """Read what `class_folders` found in `root`; errors are those of `Task.load_splits`."""
    bad = BadExamples(on_bad_example)
    question = instructed(CLASS_QUESTION)
    class_names = sorted({folder.name for classes in parts.values() for folder in classes})
    for name in class_names:
        check_characters(name, f"{root}: the name of the folder {name!a}")
    options = tuple(sorted(set(map(class_name, class_names))))
    read = {}
    for part, classes in parts.items():
        conversations = []
        for folder, names in classes.items():
            rounds = ((question, class_name(folder.name)),)
            for name in names:
                image = ImageFile(folder / name)
                key = image.path.relative_to(root).as_posix()
                conversations.append(Conversation(str(image.path), key, (image,), (key,), rounds, options))
        read[part] = drop_broken(conversations, str(root), bad)
    return divide(read, str(root), bad)
