r"""Read data sets from their own files: LLaVA's conversations, Slake, ScienceQA, and folders of classes such as AID's.

A file is a JSON list, or has one object per line:

    {"id": "17", "image": "xmlab1/source.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhich organ is it?\nAnswer the question using a single word or phrase."},
        {"from": "gpt", "value": "Liver"}]}

`image` is a name, a list of names or left out, and each image has its mark `<image>` in a human turn. Every answer of gpt is
an example, with the rounds before it. Two more fields are optional: `answer_type`, by which scores are grouped, and
`options`, the answers to choose from. Where a data set asks the same question about every image and has few answers, these
are the options.

Slake has `train.json`, `validate.json`, `test.json` and the images in `imgs`. Only the English questions are read.

ScienceQA has `problems.json`, `pid_splits.json` and the images `{split}/{pid}/image.png`, in the folder of the files or in
`images`. A problem is asked with its hint as context and its choices lettered, and the answer is a letter, as in LLaVA-1.5.
Val is the reward split.

Class folders are in the data root, or in `train`, `val` and `test` in it, as torchvision's `ImageFolder` has them. The
options are their names: `BareLand` and `bare_land` are both the class `bare land`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from das_gym.data.entries import (
    BadExamples,
    Fields,
    check_characters,
    check_fields,
    check_text,
    check_unique,
    first_few,
    read_entries,
)
from das_gym.data.images import SUFFIXES, ImageFile, files_in, plain_name
from das_gym.data.splits import Splits
from das_gym.files import read_json_object
from das_gym.tasks.answering.examples import (
    CLASS_QUESTION,
    IMAGE_MARK,
    LETTERS,
    AnswerExample,
    Conversation,
    add_instruction,
    check_options,
    divide,
    drop_broken,
    multiple_choice,
)
from das_gym.tasks.answering.files import IMAGE_FOLDERS, MISSPELLED_KEY, ImageFinder, subfolders

ROLES = ("human", "gpt")

MAX_CLASSES = 100
"""The largest number of answers to a single question that become its options."""

Rounds = tuple[tuple[str, str], ...]

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


def load_llava(files: Mapping[str, Path], root: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read the files of `train`, `val` and `test`, or one of any name; see `examples.divide`."""
    bad = BadExamples(on_bad_example)
    parts = {part: _read(path, ImageFinder(path.parent, root), bad) for part, path in files.items()}
    return divide(add_class_options(parts), " and ".join(map(str, files.values())), bad)


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
        check_unique(seen, str(number), "question_id", where)
        return AnswerExample(
            str(number), images, question, "", kind=kind if isinstance(kind, str) else "", question_id=number
        )

    read = bad.parse(read_entries(path, bad), example)
    return bad.drop_broken(read, str(path), lambda e: f"question_id {e.question_id}")


def _read(path: Path, finder: ImageFinder, bad: BadExamples) -> list[Conversation]:
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
    if isinstance(entry, dict) and MISSPELLED_KEY in entry:
        entry = {"conversations": entry[MISSPELLED_KEY], **entry}
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
    return tuple(zip(texts[::2], texts[1::2], strict=False))  # a last question without an answer is left out


def _image_names(image: object, where: str) -> list[str]:
    names = [image] if image and isinstance(image, str) else image or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: wrong `image`: got {image!r:.60}, expected the name of an image, or a list of names")
    return names


def add_class_options(parts: Mapping[str, list[Conversation]]) -> dict[str, list[Conversation]]:
    """Return the parts; where all images get one question that has few answers, with these as options."""
    conversations = [conversation for part in parts.values() for conversation in part]
    answers = Counter(answer for conversation in conversations for _, answer in conversation.rounds)
    questions = {question for conversation in conversations for question, _ in conversation.rounds}
    few = 2 <= len(answers) <= MAX_CLASSES and 2 * len(answers) <= answers.total()
    if len(questions) > 1 or not few or any(c.options or not c.images for c in conversations):
        return dict(parts)
    options = tuple(sorted(answers))
    return {name: [replace(c, options=options) for c in part] for name, part in parts.items()}


def load_slake(files: Mapping[str, Path], root: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read the files of one data set; the arguments are those of `load_llava`."""
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
        rounds = ((add_instruction(entry["question"]), answer),)
        return Conversation(where, f"{path.name}/{key}", images, (plain_name(entry["img_name"]),), rounds, kind=kind)

    return drop_broken(bad.parse(read_entries(path, bad), conversation), str(path), bad)


def load_scienceqa(folder: Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read ScienceQA's files in a folder; errors are those of `Task.load_splits`."""
    bad = BadExamples(on_bad_example)
    finder = ImageFinder(folder, folder)
    seen = dict[str, str]()
    problems = read_json_object(folder / PROBLEMS)
    pids = read_json_object(folder / PID_SPLITS)
    listed = {split: pids[split] for split in SPLITS if isinstance(pids.get(split), list)}
    if not listed:
        got = first_few(list(pids)) or "nothing"
        raise ValueError(f"{folder / PID_SPLITS} has no splits: got {got}, expected lists train, val, test")

    def conversation(item: tuple[str, str], where: str) -> Conversation:
        split, pid = item
        if pid not in problems:
            raise ValueError(f"{where} is not in {PROBLEMS}: got {pid:.40}")
        check_unique(seen, pid, "pid", where)
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
    question = add_instruction(CLASS_QUESTION)
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
