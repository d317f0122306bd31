"""Read Slake from its own files: `train.json`, `validate.json`, `test.json` and the images in `imgs`.

An entry is a question with its answer, `answer_type` OPEN or CLOSED, and `q_lang`. Only the English questions are read,
4,919 of train in Slake 1.0. Each is asked with LLaVA's instruction to answer briefly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import Fields, check_fields, check_text, read_entries
from das_gym.data.splits import Splits
from das_gym.tasks.answering.conversations import Conversation, divide, drop_broken
from das_gym.tasks.answering.examples import AnswerExample, instructed
from das_gym.tasks.answering.image_files import ImageFinder, plain_name

LANGUAGE = "en"

_FIELDS: Fields = {"img_name": str, "question": str, "answer": (str, int)}


def load_slake(files: Mapping[str, Path], root: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read the files of one data set; the arguments are those of `llava_json.load_llava`."""
    bad = BadExamples(on_bad_example)
    parts = {name: _read(path, root, bad) for name, path in files.items()}
    return divide(parts, " and ".join(map(str, files.values())), bad)


def _read(path: Path, root: Path, bad: BadExamples) -> list[Conversation]:
    finder, seen = ImageFinder(path.parent, root), dict[str, str]()

    def conversation(entry: Any, where: str) -> Conversation | None:
        if isinstance(entry, dict) and entry.get("q_lang", LANGUAGE) != LANGUAGE:
            return None
        check_fields(entry, _FIELDS, where)
        qid = " ".join(str(entry.get("qid", "")).split())
        key = qid if qid and seen.setdefault(qid, where) == where else where.removeprefix(f"{path}: ")
        where = f"{where} (qid {qid})" if qid else where
        check_text(entry["question"], f"{where}: `question`")
        answer = check_text(str(entry["answer"]), f"{where}: `answer`")
        images = (finder.find(entry["img_name"], where),)
        kind = str(entry.get("answer_type") or "").strip()
        rounds = ((instructed(entry["question"]), answer),)
        return Conversation(where, f"{path.name}/{key}", images, (plain_name(entry["img_name"]),), rounds, kind=kind)

    return drop_broken(bad.parse(read_entries(path, bad), conversation), str(path), bad)
