"""Reads Slake from its own files: `train.json`, `validate.json`, `test.json` and the images in `imgs`.

An entry is a question with its answer, `answer_type` OPEN or CLOSED, and `q_lang`. The English questions are read, 4,919 of
train in Slake 1.0; each is asked with LLaVA's instruction to answer briefly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from das_gym.data.checks import BadExamples, check_fields, check_text
from das_gym.data.entries import read_entries
from das_gym.data.splits import Splits
from das_gym.tasks.answering.conversations import Conversation, divided, drop_broken
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.image_files import ImageFinder, plain_name
from das_gym.tasks.answering.prompts import instructed

LANGUAGE = "en"

_FIELDS: dict[str, type | tuple[type, ...]] = {"img_name": str, "question": str, "answer": (str, int)}


def load_slake(files: Mapping[str, Path], root: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read the files of one data set; the arguments are those of `llava_json.load_llava`.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: A file or an entry is damaged, or there are too few images to divide.
    """
    bad = BadExamples(on_bad_example)
    parts = {name: _read(path, root, bad) for name, path in files.items()}
    return divided(parts, " and ".join(map(str, files.values())), bad)


def _read(path: Path, root: Path, bad: BadExamples) -> list[Conversation]:
    bad.new_file()
    finder, seen, read = ImageFinder(path.parent, root), dict[str, str](), []
    for where, entry in read_entries(path, bad):
        if isinstance(entry, dict) and entry.get("q_lang", LANGUAGE) != LANGUAGE:
            continue
        try:
            read.append(_conversation(entry, path, where, finder, seen))
        except ValueError as error:
            bad.report(error)
    kept = drop_broken(read, bad)
    bad.require(kept, f"{path} (questions with q_lang {LANGUAGE!r})")
    return kept


def _conversation(entry: Any, path: Path, where: str, finder: ImageFinder, seen: dict[str, str]) -> Conversation:
    check_fields(entry, _FIELDS, where)
    own = " ".join(str(entry.get("qid", "")).split())
    key = own if own and seen.setdefault(own, where) == where else where.removeprefix(f"{path.parent}/{path.name}: ")
    where = f"{where} (qid {own})" if own else where
    question, answer, image = entry["question"], str(entry["answer"]), entry["img_name"]
    check_text(question, f"{where}: question")
    check_text(answer, f"{where}: answer")
    images, rounds = (finder.find(image, where),), ((instructed(question), answer.strip()),)
    kind = str(entry.get("answer_type") or "").strip()
    return Conversation(where, f"{path.name}/{key}", images, (plain_name(image),), rounds, kind=kind)
