"""Reads ScienceQA: `problems.json`, `pid_splits.json` and the images `{split}/{pid}/image.png`.

The images lie beside the files or in a folder `images`; about half of the problems have none. A problem is asked with its
hint as context and its choices lettered, and the answer is a letter, as LLaVA-1.5 does it. Train trains, val scores masks,
test is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from das_gym.data.checks import BadExamples, check_characters, check_fields, check_text
from das_gym.data.entries import read_whole_json
from das_gym.data.images import ImageFile
from das_gym.data.splits import Splits
from das_gym.tasks.answering.conversations import Conversation, divided, drop_broken
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.image_files import ImageFinder
from das_gym.tasks.answering.prompts import LETTERS, multiple_choice

PROBLEMS, PID_SPLITS = "problems.json", "pid_splits.json"

SPLITS = ("train", "val", "test")
"""The official splits that are read; the small ones are parts of them."""

_FIELDS: dict[str, type | tuple[type, ...]] = {"question": str, "choices": list, "answer": int}


def load_scienceqa(folder: Path, root: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read ScienceQA.

    Args:
        folder: The folder of both files.
        root: The folder in which images are looked for besides.
        on_bad_example: `raise`, or `skip` to leave bad problems out; then every image is decoded once.

    Raises:
        FileNotFoundError: A file or an image is missing.
        ValueError: A file or a problem is damaged, or a problem is in two splits.
    """
    bad = BadExamples(on_bad_example)
    problems, pids = (_read_object(folder / name) for name in (PROBLEMS, PID_SPLITS))
    absent = [split for split in SPLITS if not isinstance(pids.get(split), list)]
    if len(absent) == len(SPLITS):
        raise ValueError(f"{folder / PID_SPLITS} has {', '.join(pids) or 'nothing'}; it needs lists of ids: train, ...")
    finder, parts, seen = ImageFinder(folder, root), dict[str, list[Conversation]](), dict[str, str]()
    for split in SPLITS:
        if split not in absent:
            bad.new_file()
            read = list(_conversations(split, pids[split], problems, folder, finder, bad, seen))
            parts[split] = drop_broken(read, bad)
            bad.require(parts[split], f"the {split} split ({folder / PID_SPLITS})")
    return divided(parts, f"{folder / PROBLEMS} and {PID_SPLITS}", bad)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; ScienceQA needs {PROBLEMS} and {PID_SPLITS} in one folder")
    whole = read_whole_json(path)
    if not isinstance(whole, dict):
        raise ValueError(f"{path} is JSON of type {type(whole).__name__}; ScienceQA's is an object")
    return whole


def _conversations(
    split: str,
    pids: list[Any],
    problems: dict[str, Any],
    folder: Path,
    finder: ImageFinder,
    bad: BadExamples,
    seen: dict[str, str],
) -> Iterator[Conversation]:
    for index, pid in enumerate(map(str, pids)):
        where = f"{folder / PID_SPLITS}: {split}[{index}]"
        try:
            if pid not in problems:
                raise ValueError(f"{where} is the problem {pid:.40}, which is not in {PROBLEMS}; get the two files anew")
            if seen.setdefault(pid, where) != where:
                raise ValueError(f"{where} is the problem {pid}, and so is {seen[pid].partition(': ')[2]}; delete one")
            yield _conversation(split, pid, problems[pid], f"{folder / PROBLEMS}: {pid}", finder)
        except ValueError as error:
            bad.report(error)


def _conversation(split: str, pid: str, problem: Any, where: str, finder: ImageFinder) -> Conversation:
    check_fields(problem, _FIELDS, where)
    question, choices, answer, hint = problem["question"], problem["choices"], problem["answer"], problem.get("hint") or ""
    check_text(question, f"{where}: question")
    if not isinstance(hint, str):
        raise ValueError(f"{where} has hint={hint!r:.60}; it must be a text")
    check_characters(hint, f"{where}: hint")
    if not 2 <= len(choices) <= len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where} has choices={choices!r:.80}; it must be a list of 2 to {len(LETTERS)} texts")
    for choice in choices:
        check_text(choice, f"{where}: choices")
    if not 0 <= answer < len(choices):
        raise ValueError(f"{where} has answer={answer}, which is none of its {len(choices)} choices; they count from 0")
    names = _image_names(split, pid, problem.get("image"), where)
    images: tuple[ImageFile, ...] = tuple(finder.find(name, where) for name in names)
    rounds = ((multiple_choice(question, hint, choices), LETTERS[answer]),)
    kind = str(problem.get("subject") or "").strip()
    return Conversation(where, f"{split}/{pid}", images, names, rounds, tuple(LETTERS[: len(choices)]), kind)


def _image_names(split: str, pid: str, image: object, where: str) -> tuple[str, ...]:
    if not image:
        return ()
    if not isinstance(image, str):
        raise ValueError(f"{where} has image={image!r:.60}; it must be the name of a file, or null")
    return (f"{split}/{pid}/{image}",)
