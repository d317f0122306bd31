"""Read tables with an image, a question and an answer in each row: parquet files, and folders of `save_to_disk`.

An image is a struct of `bytes` and `path`, as `datasets` stores it; or bytes, or a path; or a list of these. An answer is a
text, a number, or a list of several annotators' answers, each a text or a struct with `answer`. The columns `answer_type`
and `options` are optional.

Parquet files `train-00000-of-00002.parquet`, or those in a folder `train`, are the split train.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from das_gym.data.entries import BadExamples, check_text, first_few
from das_gym.data.rows import Table, table_of_file
from das_gym.data.splits import Splits
from das_gym.files import explain_damage, read_json
from das_gym.tasks.answering.examples import (
    IMAGE_MARK,
    AnswerExample,
    Conversation,
    add_instruction,
    check_options,
    divide,
    drop_broken,
)
from das_gym.tasks.answering.files import ALL_PARTS, ImageFinder, part_in_name, subfolders
from das_gym.tasks.answering.published import add_class_options

COLUMNS: Mapping[str, Sequence[str]] = {
    "image": ("image", "images", "img"),
    "question": ("question", "query", "problem", "prompt"),
    "answer": ("answers", "answer", "label", "labels", "response"),
}
"""The names of the columns that are looked for, best first."""

OPTIONAL = ("answer_type", "options")

STATE = "state.json"
INFO = "dataset_info.json"
SPLIT_NAMES = "dataset_dict.json"
"""Files that `save_to_disk` writes: two next to the arrow files of a data set, one next to the folders of its splits."""

HINT = "save the data set again"

Shards = Mapping[str, Sequence[Path]]
"""The shards of each split."""


def shards_in(folder: Path, suffix: str) -> Shards:
    """Return the files with a suffix in a folder, and in folders within it that are named like a split, by split."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{suffix}")):
        split = re.sub(r"[-_.]?\d+([-_]of[-_]\d+)?$", "", path.stem)
        found.setdefault(split, []).append(path)
    for inner in subfolders(folder):
        if part_in_name(inner)[0] != ALL_PARTS and (paths := sorted(inner.glob(f"*{suffix}"))):
            found.setdefault(inner.name, []).extend(paths)
    return found


def saved_shards(folder: Path) -> Shards:
    """Return the arrow files of a folder that `save_to_disk` wrote, by split; empty for any other folder."""
    if (folder / SPLIT_NAMES).is_file():
        with explain_damage(folder / SPLIT_NAMES, HINT):
            names = [Path(name).name for name in read_json(folder / SPLIT_NAMES)["splits"]]
        return {name: _saved_files(folder / name) for name in names}
    return {"": _saved_files(folder)} if all((folder / name).is_file() for name in (STATE, INFO)) else {}


def _saved_files(folder: Path) -> list[Path]:
    with explain_damage(folder / STATE, HINT):
        names = [Path(file["filename"]).name for file in read_json(folder / STATE)["_data_files"]]
        if not names:
            raise ValueError("it names no files")
        return [folder / name for name in names]


def load_tables(
    shards: Shards, root: Path, on_bad_example: str = "raise", columns: str | None = None
) -> Splits[AnswerExample]:
    """Read the files of each split of a data set; ValueError for unknown splits.

    Images that are named by paths are looked for in `root`. For `columns` and the division see `divide_tables`.
    """
    parts: dict[str, list[Table]] = {}
    split_of: dict[str, str] = {}
    for split, paths in shards.items():
        part = part_in_name(Path(split))[0] if len(shards) > 1 else split
        if part in parts or (len(shards) > 1 and part == ALL_PARTS):
            other = f"{split_of[part]} is {part} too" if part in parts else "the name has no `train`, `val` or `test`"
            raise ValueError(
                f"{root}: the part of the split {split!r} is unknown: {other}. Pass the folder of one split as `data_root`"
            )
        split_of[part] = split
        parts[part] = [table_of_file(path, root, ImageFinder(path.parent, root).find) for path in paths]
    return divide_tables(parts, str(root), BadExamples(on_bad_example), columns)


def divide_tables(
    parts: Mapping[str, Sequence[Table]], source: str, bad: BadExamples, columns: str | None = None
) -> Splits[AnswerExample]:
    """Return the splits of the rows of tables, divided by `examples.divide`.

    Args:
        parts: The tables of train, val and test, or of one part of any name.
        source: What errors call all of them.
        bad: Receives bad rows.
        columns: The names of the columns of image, question and answer, separated by commas; None finds them by `COLUMNS`.
    """
    read = read_tables(parts, bad, columns)
    _warn_of_missing_images([conversation for part in read.values() for conversation in part], source)
    return divide(read, source, bad)


def read_tables(
    parts: Mapping[str, Sequence[Table]], bad: BadExamples, columns: str | None = None
) -> Mapping[str, Sequence[Conversation]]:
    """Return the questions in the rows of tables by part; arguments are those of `divide_tables`."""
    read = {part: read_part(tables, partial(_read, columns=columns, bad=bad), bad) for part, tables in parts.items()}
    return add_class_options(read)


def read_part(
    tables: Sequence[Table], read: Callable[[Table], Sequence[Conversation]], bad: BadExamples
) -> list[Conversation]:
    """Return what `read` makes of the tables of a part, without the rows whose images cannot be used."""
    found = [conversation for table in tables for conversation in read(table)]
    source = tables[0].name if len(tables) == 1 else str(Path(tables[0].name).parent)
    return drop_broken(found, source, bad)


def _warn_of_missing_images(read: Sequence[Conversation], source: str) -> None:
    without = [conversation.where for conversation in read if not conversation.images]
    if without:
        warnings.warn(
            f"{source}: {len(without)} of {len(read)} rows have no image, such as {without[0]}: their questions are asked "
            "without one. Remove these rows if images are missing by mistake",
            stacklevel=2,
        )


def find_columns(names: Sequence[str], columns: str | None, source: str) -> tuple[str, str, str]:
    """Return the names of the columns of image, question and answer, see `divide_tables`; ValueError if one is missing."""
    given = None if columns is None else [name.strip() for name in columns.split(",")]
    if given is not None and len(given) != len(COLUMNS):
        raise ValueError(f"wrong `columns`: got {columns!r}, expected three names, IMAGE,QUESTION,ANSWER")
    candidates = dict(COLUMNS) if given is None else {kind: [name] for kind, name in zip(COLUMNS, given, strict=True)}
    found = [next((name for name in wanted if name in names), None) for wanted in candidates.values()]
    missing = [kind for kind, name in zip(candidates, found, strict=True) if name is None]
    if missing:
        expected = " and ".join(" or ".join(candidates[kind]) for kind in missing)
        raise ValueError(
            f"{source} lacks a column for {' and '.join(missing)}: got {first_few(list(names), 20) or 'no columns'}, "
            f"expected {expected}. Set `columns` to IMAGE,QUESTION,ANSWER."
        )
    image, question, answer = (str(name) for name in found)
    return image, question, answer


def _read(table: Table, columns: str | None, bad: BadExamples) -> list[Conversation]:
    image, question, answer = find_columns(table.columns, columns, table.name)
    optional = [name for name in OPTIONAL if name in table.columns and name not in (image, question, answer)]
    classes = table.class_names(answer)

    def conversation(entry: tuple[int, dict[str, Any]], where: str) -> Conversation:
        row, values = entry
        images = table.images(row, image, values[image], where)
        asked = _prompt(check_text(values[question], f"{where}: `{question}`"), len(images), where)
        answers = tuple(check_text(each, f"{where}: `{answer}`") for each in _answers(values[answer], classes))
        if not answers:
            raise ValueError(f"{where}: `{answer}` is empty: got {values[answer]!r:.60}, expected a text or a list of texts")
        reference = Counter(answers).most_common(1)[0][0]
        options = tuple(str(option).strip() for option in values.get("options") or ())
        if options:
            check_options(reference, options, where)
        return Conversation(
            where=where,
            key=f"{table.key}/{row}",
            images=tuple(source for _, source in images),
            names=tuple(name for name, _ in images),
            rounds=((asked, reference),),
            options=options,
            kind=str(values.get("answer_type") or "").strip(),
            answers=answers if len(answers) > 1 else (),
        )

    return bad.parse(table.entries((image, question, answer, *optional)), conversation)


def _prompt(question: str, images: int, where: str) -> str:
    marks = question.count(IMAGE_MARK)
    if marks not in (0, images):
        raise ValueError(f"{where}: got {images} images and {marks} marks {IMAGE_MARK}, expected equal numbers or no mark")
    # A question of several lines already includes an instruction.
    text = check_text(question.replace(IMAGE_MARK, ""), f"{where}: the question")
    return question if "\n" in text else add_instruction(question)


def _answers(value: Any, classes: Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [answer for each in value for answer in _answers(each, classes)]
    if isinstance(value, dict):
        return _answers(value.get("answer"), classes)
    if isinstance(value, int) and not isinstance(value, bool) and classes is not None and 0 <= value < len(classes):
        return [classes[value]]
    return [str(value)]
