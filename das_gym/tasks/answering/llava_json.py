r"""Reads LLaVA's conversations, which everybody has who fine-tunes such models.

A file is a JSON list, or has an object a line:

    {"id": "17", "image": "xmlab1/source.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhich organ is it?\nAnswer the question using a single word or phrase."},
        {"from": "gpt", "value": "Liver"}]}

`image` is a name, a list of names or left out, and each image has its mark `<image>` in what the human says. Every answer
of gpt is an example, with what was said before it. Two fields may follow: `answer_type`, such as OPEN or CLOSED, by which
scores are grouped, and `options`, a list of texts that the answers are chosen from. A data set that asks one and the same
question about every image, and has few answers, is one of classes: its answers are the options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from das_gym.data.checks import BadExamples, check_fields, check_text
from das_gym.data.entries import read_entries
from das_gym.data.images import ImageFile
from das_gym.data.splits import Splits
from das_gym.tasks.answering.conversations import Conversation, check_options, divided, drop_broken
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.image_files import ImageFinder, plain_name
from das_gym.tasks.answering.prompts import IMAGE_MARK

ROLES = ("human", "gpt")
"""Who speaks, in turn."""

MISSPELT = "conversatons"
"""How files of LLaVA-Med's kin have it."""

MAX_CLASSES = 100
"""A data set of one question with more answers than these is not taken for one of classes."""

Turn = tuple[str, str]


def load_llava(files: Mapping[str, Path], root: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read the files of one data set.

    Args:
        files: Files of `train`, `val` and `test`, or one of any name; see `conversations.divided`.
        root: The folder in which images are looked for.
        on_bad_example: `raise`, or `skip` to leave bad entries out; then every image is decoded once.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: A file or an entry is damaged, or there are too few images to divide.
    """
    bad = BadExamples(on_bad_example)
    alike = len({path.name for path in files.values()}) < len(files)
    parts = {name: _read(path, path.parent.parent if alike else path.parent, root, bad) for name, path in files.items()}
    return divided(_with_classes(parts), " and ".join(map(str, files.values())), bad)


def load_questions(path: Path, root: Path, on_bad_example: str = "raise") -> list[AnswerExample]:
    """Read a file for evaluation as LLaVA has them, without answers: lines of `question_id`, `text` and perhaps `image`.

    Args:
        path: The file.
        root: The folder in which images are looked for.
        on_bad_example: As for `load_llava`.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: The file or an entry is damaged, or two have one `question_id`.
    """
    bad, finder, read = BadExamples(on_bad_example), ImageFinder(path.parent, root), dict[str, AnswerExample]()
    bad.new_file()
    for where, entry in read_entries(path, bad):
        try:
            example = _question(entry, where, finder)
            if example.key in read:
                raise ValueError(f"{where} has the question_id {example.question_id!r} of an entry before it")
            read[example.key] = example
        except ValueError as error:
            bad.report(error)
    kept = bad.drop_broken(
        list(read.values()), images=lambda e: e.images, name=lambda e: f"{path}: question_id {e.question_id}"
    )
    bad.require(kept, str(path))
    return kept


def _question(entry: Any, where: str, finder: ImageFinder) -> AnswerExample:
    check_fields(entry, {"question_id": (int, str), "text": str}, where)
    check_text(entry["text"], f"{where}: text")
    images = tuple(finder.find(name, where) for name in _image_names(entry.get("image"), where))
    kind, number = entry.get("category"), entry["question_id"]
    return AnswerExample(
        str(number), images, entry["text"].strip(), "", kind=kind if isinstance(kind, str) else "", question_id=number
    )


def _read(path: Path, above: Path, root: Path, bad: BadExamples) -> list[Conversation]:
    """The good conversations of a file, with keys that begin with its name from a folder above it on."""
    bad.new_file()
    name = path.relative_to(above).as_posix()
    finder = ImageFinder(path.parent, root)
    entries = list(read_entries(path, bad))
    ids = Counter(_id_of(entry) for _, entry in entries)
    read = []
    for where, entry in entries:
        own_id = _id_of(entry)
        unique = own_id and ids[own_id] == 1 and "#" not in own_id
        key = f"{name}/{own_id}" if unique else name + where.removeprefix(str(path))
        where = f"{where} (id {own_id:.60})" if own_id else where
        try:
            read.append(_conversation(entry, key, where, finder))
        except ValueError as error:
            bad.report(error, _answers_in(entry))
    kept = drop_broken(read, bad)
    bad.require(kept, str(path))
    return kept


def _id_of(entry: object) -> str:
    """What an entry calls itself, or nothing."""
    own = entry.get("id") if isinstance(entry, dict) else None
    return " ".join(str(own).split()) if isinstance(own, str | int) else ""


def _turns_of(entry: object) -> object:
    return entry.get("conversations", entry.get(MISSPELT)) if isinstance(entry, dict) else None


def _answers_in(entry: object) -> int:
    """How many examples a bad entry would have been; 1 where that cannot be told."""
    turns = _turns_of(entry)
    said = turns if isinstance(turns, list) else []
    return max(1, sum(isinstance(turn, dict) and turn.get("from") == "gpt" for turn in said))


def _conversation(entry: Any, key: str, where: str, finder: ImageFinder) -> Conversation:
    """The conversation of an entry, checked."""
    if isinstance(entry, dict) and MISSPELT in entry:
        entry = {"conversations": entry[MISSPELT], **entry}
    check_fields(entry, {"conversations": list}, where)
    if entry.get("video"):
        raise ValueError(f"{where} has a video, which cannot be read; take the entry out, or write frames of it as images")
    rounds = _rounds(list(_turns(entry["conversations"], where)), where)
    names = _image_names(entry.get("image"), where)
    images = tuple(finder.find(name, where) for name in names)
    _check_marks(rounds, images, where)
    kind = entry.get("answer_type") or ""
    if not isinstance(kind, str):
        raise ValueError(f"{where} has answer_type={kind!r:.60}; it must be a text, such as OPEN")
    options = _options(entry.get("options"), rounds, where)
    return Conversation(where, key, images, tuple(map(plain_name, names)), rounds, options, kind.strip())


def _turns(turns: Sequence[Any], where: str) -> Iterator[Turn]:
    """Who says what, in order and in turn, human first."""
    for number, turn in enumerate(turns):
        here = f"{where}: conversations[{number}]"
        check_fields(turn, {"from": str, "value": str}, here)
        role, text = turn["from"], turn["value"]
        wanted = ROLES[number % 2]
        if role not in ROLES:
            raise ValueError(f"{here} is from {role!r:.40}, which is unknown; turns are from human and from gpt")
        if role != wanted:
            way_out = "take it out" if number == 0 else "put the two together, or take one out"
            begins = "begins the conversation" if number == 0 else f"follows another of {role}"
            raise ValueError(f"{here} is from {role} and {begins}; human and gpt speak in turn, human first: {way_out}")
        if role == "gpt" and IMAGE_MARK in text:
            raise ValueError(f"{here} is an answer with a mark {IMAGE_MARK}; only what human says may have marks")
        check_text(text, f"{here}: value")
        yield role, text.strip()


def _rounds(turns: Sequence[Turn], where: str) -> tuple[Turn, ...]:
    """Question and answer of each round; a last question without an answer is none."""
    asked, answered = [text for _, text in turns[::2]], [text for _, text in turns[1::2]]
    if not answered:
        raise ValueError(f"{where} has no answer of gpt in its conversations; write a turn of human and one of gpt")
    return tuple(zip(asked, answered, strict=False))


def _image_names(image: object, where: str) -> list[str]:
    names = [image] if image and isinstance(image, str) else image or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} has image={image!r:.60}; it must be the name of an image, or a list of names")
    return names


def _check_marks(rounds: Sequence[Turn], images: Sequence[ImageFile], where: str) -> None:
    marks = sum(question.count(IMAGE_MARK) for question, _ in rounds)
    if marks != len(images):
        raise ValueError(
            f"{where} has {_counted(len(images), 'image')} and {_counted(marks, 'mark')} {IMAGE_MARK} in what human says; "
            "write one mark where each image stands"
        )


def _counted(count: int, thing: str) -> str:
    return f"{count or 'no'} {thing}{'' if count == 1 else 's'}"


def _options(options: object, rounds: Sequence[Turn], where: str) -> tuple[str, ...]:
    if options is None or options == []:
        return ()
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{where} has options={options!r:.60}; it must be a list of texts")
    stripped = tuple(option.strip() for option in options)
    for _, answer in rounds:
        check_options(answer, stripped, where)
    return stripped


def _with_classes(parts: Mapping[str, list[Conversation]]) -> dict[str, list[Conversation]]:
    """The parts; where one question is asked about everything, with its answers as options."""
    every = [conversation for part in parts.values() for conversation in part]
    answers = Counter(answer for conversation in every for _, answer in conversation.rounds)
    questions = {question for conversation in every for question, _ in conversation.rounds}
    few = 2 <= len(answers) <= MAX_CLASSES and 2 * len(answers) <= answers.total()
    if len(questions) > 1 or not few or any(c.options or not c.images for c in every):
        return dict(parts)
    options = tuple(sorted(answers))
    return {name: [replace(c, options=options) for c in part] for name, part in parts.items()}
