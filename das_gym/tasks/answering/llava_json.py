r"""Read LLaVA's conversations, the usual format for fine-tuning such models.

A file is a JSON list, or has one object per line:

    {"id": "17", "image": "xmlab1/source.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhich organ is it?\nAnswer the question using a single word or phrase."},
        {"from": "gpt", "value": "Liver"}]}

`image` is a name, a list of names or left out, and each image has its mark `<image>` in a human turn. Every answer of
gpt is an example, with the rounds before it. Two more fields are optional: `answer_type`, such as OPEN or CLOSED, by
which scores are grouped, and `options`, a list of the answers to choose from. Where a data set asks the same question
about every image and has few answers, these are the options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from das_gym.data.entries import BadExamples, check_fields, check_new, check_text, read_entries
from das_gym.data.splits import Splits
from das_gym.tasks.answering.examples import IMAGE_MARK, AnswerExample, Conversation, check_options, divide, drop_broken
from das_gym.tasks.answering.files import MISSPELLED, ImageFinder, plain_name

ROLES = ("human", "gpt")
"""Who speaks, in turn."""

MAX_CLASSES = 100
"""The largest number of answers to a single question that become its options."""

Rounds = tuple[tuple[str, str], ...]


def load_llava(files: Mapping[str, Path], root: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read the files of `train`, `val` and `test`, or one of any name; see `examples.divide`."""
    bad = BadExamples(on_bad_example)
    parts = {part: _read(path, ImageFinder(path.parent, root), bad) for part, path in files.items()}
    return divide(with_classes(parts), " and ".join(map(str, files.values())), bad)


def load_questions(path: Path, root: Path, on_bad_example: str = "raise") -> list[AnswerExample]:
    """Read a file for evaluation as LLaVA has them, without answers: `question_id`, `text`, optionally `image` per line."""
    bad = BadExamples(on_bad_example)
    finder = ImageFinder(path.parent, root)
    seen = dict[str, str]()

    def example(entry: Any, where: str) -> AnswerExample:
        check_fields(entry, {"question_id": (int, str), "text": str}, where)
        number = entry["question_id"]
        kind = entry.get("category")
        question = check_text(entry["text"], f"{where}: `text`")
        check_text(question.replace(IMAGE_MARK, ""), f"{where}: the question in `text`")
        images = tuple(finder.find(name, where) for name in _image_names(entry.get("image"), where))
        check_new(seen, str(number), "question_id", where)
        return AnswerExample(
            str(number), images, question, "", kind=kind if isinstance(kind, str) else "", question_id=number
        )

    read = bad.parse(read_entries(path, bad), example)
    return bad.drop_broken(read, str(path), lambda e: f"question_id {e.question_id}")


def _read(path: Path, finder: ImageFinder, bad: BadExamples) -> list[Conversation]:
    """Read the conversations of a file; keys begin with its name."""
    entries = list(read_entries(path, bad))
    ids = Counter(_id_of(entry) for _, entry in entries)

    def conversation(entry: Any, where: str) -> Conversation:
        own_id = _id_of(entry)
        # Rounds of a conversation add "#2" to its key, so that an id with "#" could be the key of another round.
        unique = own_id and ids[own_id] == 1 and "#" not in own_id
        key = f"{path.name}/{own_id}" if unique else path.name + where.removeprefix(str(path))
        return _conversation(entry, key, f"{where} (id {own_id:.60})" if own_id else where, finder)

    return drop_broken(bad.parse(entries, conversation), str(path), bad)


def _id_of(entry: object) -> str:
    own = entry.get("id") if isinstance(entry, dict) else None
    return " ".join(str(own).split()) if isinstance(own, str | int) else ""


def _conversation(entry: Any, key: str, where: str, finder: ImageFinder) -> Conversation:
    if isinstance(entry, dict) and MISSPELLED in entry:
        entry = {"conversations": entry[MISSPELLED], **entry}
    check_fields(entry, {"conversations": list}, where)
    if entry.get("video"):
        raise ValueError(f"{where} has a `video`, which is not supported. Write frames of it as images")
    rounds = _rounds(entry["conversations"], where)
    names = _image_names(entry.get("image"), where)
    images = tuple(finder.find(name, where) for name in names)
    marks = sum(question.count(IMAGE_MARK) for question, _ in rounds)
    if marks != len(images):
        raise ValueError(
            f"{where}: wrong number of images: got {len(images)}, expected one for each of {marks} {IMAGE_MARK}"
        )
    kind = entry.get("answer_type") or ""
    options = entry.get("options") or []
    check_fields({"answer_type": kind, "options": options}, {"answer_type": str, "options": list}, where)
    options = tuple(check_text(option, f"{where}: `options`") for option in options)
    for _, answer in rounds if options else ():
        check_options(answer, options, where)
    return Conversation(where, key, images, tuple(map(plain_name, names)), rounds, options, kind.strip())


def _rounds(turns: list[Any], where: str) -> Rounds:
    """Return question and answer of each round; a last question without an answer is left out."""
    texts = []
    for number, turn in enumerate(turns):
        here = f"{where}: conversations[{number}]"
        role = ROLES[number % 2]
        check_fields(turn, {"from": str, "value": str}, here)
        if turn["from"] != role:
            raise ValueError(f"{here}: wrong `from`: got {turn['from']!r:.40}, expected {role!r}. human and gpt take turns")
        if role == "gpt" and IMAGE_MARK in turn["value"]:
            raise ValueError(f"{here}: got a mark {IMAGE_MARK} in an answer, expected marks in human turns only")
        texts.append(check_text(turn["value"], f"{here}: `value`"))
        check_text(turn["value"].replace(IMAGE_MARK, ""), f"{here}: the question in `value`")
    if len(texts) < 2:
        raise ValueError(f"{where} has no answer: got {len(texts)} turns, expected a human turn and a gpt turn")
    return tuple(zip(texts[::2], texts[1::2], strict=False))


def _image_names(image: object, where: str) -> list[str]:
    names = [image] if image and isinstance(image, str) else image or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: wrong `image`: got {image!r:.60}, expected the name of an image, or a list of names")
    return names


def with_classes(parts: Mapping[str, list[Conversation]]) -> dict[str, list[Conversation]]:
    """Return the parts; where all images get one question that has few answers, with these as options."""
    conversations = [conversation for part in parts.values() for conversation in part]
    answers = Counter(answer for conversation in conversations for _, answer in conversation.rounds)
    questions = {question for conversation in conversations for question, _ in conversation.rounds}
    few = 2 <= len(answers) <= MAX_CLASSES and 2 * len(answers) <= answers.total()
    if len(questions) > 1 or not few or any(c.options or not c.images for c in conversations):
        return dict(parts)
    options = tuple(sorted(answers))
    return {name: [replace(c, options=options) for c in part] for name, part in parts.items()}
