"""Read ScienceQA: `problems.json`, `pid_splits.json` and the images `{split}/{pid}/image.png`.

The images are in the folder of the files or in `images`; about half of the problems have none. A problem is asked with
its hint as context and its choices lettered, and the answer is a letter, as in LLaVA-1.5. Val is the reward split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import Fields, check_characters, check_fields, check_new, check_text, some
from das_gym.data.splits import Splits
from das_gym.files import read_json
from das_gym.tasks.answering.conversations import Conversation, divide, drop_broken
from das_gym.tasks.answering.examples import LETTERS, AnswerExample, multiple_choice
from das_gym.tasks.answering.image_files import ImageFinder

PROBLEMS, PID_SPLITS = "problems.json", "pid_splits.json"

SPLITS = ("train", "val", "test")
"""The official splits that are read; the small ones are parts of them."""

_FIELDS: Fields = {"question": str, "choices": list, "answer": int}


def load_scienceqa(folder: Path, root: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read the files in a folder; images are also looked for in `root`."""
    bad, finder, seen = BadExamples(on_bad_example), ImageFinder(folder, root), dict[str, str]()
    problems, pids = read_json(folder / PROBLEMS), read_json(folder / PID_SPLITS)
    if not isinstance(problems, dict):
        raise ValueError(f"{folder / PROBLEMS} has an unexpected JSON structure: got {problems!r:.30}, expected an object")
    listed = {split: pids[split] for split in SPLITS if isinstance(pids, dict) and isinstance(pids.get(split), list)}
    if not listed:
        got = some(list(pids)) if isinstance(pids, dict) else f"{pids!r:.30}"
        raise ValueError(f"{folder / PID_SPLITS} has no splits: got {got or 'nothing'}, expected lists train, val, test")

    def conversation(item: tuple[str, str], where: str) -> Conversation:
        split, pid = item
        if pid not in problems:
            raise ValueError(f"{where} is not in {PROBLEMS}: got {pid:.40}")
        check_new(seen, pid, "pid", where)
        return _conversation(split, pid, problems[pid], f"{folder / PROBLEMS}: {pid}", finder)

    parts = {}
    for split, numbers in listed.items():
        places = ((f"{folder / PID_SPLITS}: {split}[{n}]", (split, str(pid))) for n, pid in enumerate(numbers))
        parts[split] = drop_broken(bad.parse(places, conversation), f"{folder / PID_SPLITS} ({split})", bad)
    return divide(parts, f"{folder / PROBLEMS} and {PID_SPLITS}", bad)


def _conversation(split: str, pid: str, problem: Any, where: str, finder: ImageFinder) -> Conversation:
    check_fields(problem, _FIELDS, where)
    question, choices, answer, hint = problem["question"], problem["choices"], problem["answer"], problem.get("hint") or ""
    check_text(question, f"{where}: `question`")
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
    rounds = ((multiple_choice(question, hint, choices), LETTERS[answer]),)
    kind = str(problem.get("subject") or "").strip()
    return Conversation(where, f"{split}/{pid}", images, names, rounds, tuple(LETTERS[: len(choices)]), kind)
