"""Read documents of plain text: `.txt` and `.jsonl` files, parquet files, and folders of `save_to_disk`.

A text file is a document; a JSON line or a row of a table is one, its text in the field or column `text`. Files or splits
that are named like parts of a data set (`train.txt`, `validation-00000-of-00002.parquet`, a folder `test`) are these parts;
all others together are one set of documents, which is divided.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from das_gym.data.entries import BadExamples, check_characters, check_fields, read_entries
from das_gym.data.splits import Splits, fill_parts, split_off
from das_gym.data.tables import open_table, plain_rows
from das_gym.files import absolute, check_plain
from das_gym.tasks.answering.files import ALL, part_of
from das_gym.tasks.answering.tables import saved_shards, shards_in

TEXT_COLUMN = "text"

FORMATS = (
    f".txt or .jsonl files, parquet files or a folder of `save_to_disk` with a column `{TEXT_COLUMN}`, of one kind; those "
    "named train, val and test are these parts"
)
"""The supported formats of a data root."""

SECTION_CHARACTERS = 2000
SECTIONS = 40
"""Fewest characters of a section of a single text, and about how many sections a long one is cut into."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text.

    Attributes:
        key: A name that is unique in the data set: its file, and its line or row.
        text: Its content, not blank.
    """

    key: str
    text: str


def load_documents(data_root: str | Path, on_bad_example: str = "raise", column: str | None = None) -> Splits[Document]:
    """Read documents and divide them into the three splits, so that no document is in two of them.

    Where val or test is missing, documents of another part take its place, chosen by the hash of their text: see
    `das_gym.data.splits.fill_parts`. Blank documents are left out.

    Args:
        data_root: A folder in one of `FORMATS`, or one of its files, which is then read alone.
        on_bad_example: `raise`, or `skip` for a damaged document.
        column: The field or column of the text; None is `text`.

    Raises:
        FileNotFoundError: `data_root` does not exist.
        ValueError: A file is damaged or has no such column, the folder holds no known files or files of several kinds, or
            there are too few documents.
    """
    bad = BadExamples(on_bad_example)
    root, files = find_parts(data_root, (".parquet", ".jsonl", ".txt"), FORMATS)
    folder = root if root.is_dir() else root.parent
    parts = {
        part: [document for path in paths for document in _read(path, folder, column or TEXT_COLUMN, bad)]
        for part, paths in files.items()
    }
    return _divide(parts, str(root), bad)


def find_parts(data_root: str | Path, suffixes: Sequence[str], formats: str) -> tuple[Path, dict[str, list[Path]]]:
    """Return the absolute path of a data root, and the files of each part: train, val, test, or one for all.

    Args:
        data_root: A folder of files of one kind, or one file.
        suffixes: Ends of the names of files; folders of `save_to_disk` are looked for, too.
        formats: What is expected, for errors.

    Raises:
        FileNotFoundError: `data_root` does not exist.
        ValueError: The folder holds none of these files, or files of several kinds.
    """
    root = absolute(data_root)
    if not root.exists():
        raise FileNotFoundError(f"`data_root` does not exist: got {str(data_root)!r}, expected {formats}")
    if root.is_file():
        return root, {ALL: [root]}
    kinds: dict[str, Mapping[str, Sequence[Path]]] = {"save_to_disk": saved_shards(root)}
    # `save_to_disk` writes JSON files next to its tables.
    if not kinds["save_to_disk"]:
        kinds |= {suffix: shards_in(root, suffix) for suffix in suffixes}
    found = {kind: shards for kind, shards in kinds.items() if shards}
    if len(found) != 1:
        got = " and ".join(found) or "none of them"
        raise ValueError(f"{root} holds no data in a known format: got {got}, expected {formats}. Or pass one file.")
    (shards,) = found.values()
    part_of_name = {name: part_of(Path(name))[0] for name in shards}
    parts: dict[str, list[Path]] = {}
    for name, paths in shards.items():
        # Words such as `test` mean parts only if every name has one.
        part = ALL if ALL in part_of_name.values() else part_of_name[name]
        parts.setdefault(part, []).extend(paths)
    return root, parts


def _read(path: Path, folder: Path, column: str, bad: BadExamples) -> list[Document]:
    """Return the documents of a file that are not blank."""
    if path.suffix in (".parquet", ".arrow"):
        table = open_table(path, [column], {column: "text"})
        entries: Iterator[tuple[str, object]] = ((f"{path}: row {n}", row) for n, row in enumerate(plain_rows(table)))
    elif path.suffix == ".jsonl":
        entries = read_entries(path, bad)
    else:
        entries = iter([(str(path), {column: _read_text(path)})])
    name = path.relative_to(folder).as_posix()

    def document(entry: tuple[int, object], where: str) -> Document | None:
        number, values = entry
        check_fields(values, {column: str}, where)
        text: str = values[column]  # type: ignore[index]  # `check_fields` has seen that it is an object
        check_characters(text, f"{where}: `{column}`")
        return Document(f"{name}#{number}", text) if text.strip() else None

    return bad.parse(((where, (number, entry)) for number, (where, entry) in enumerate(entries)), document)


def _read_text(path: Path) -> str:
    check_plain([path])
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error}), expected {FORMATS}") from error


def _divide(parts: Mapping[str, Sequence[Document]], source: str, bad: BadExamples) -> Splits[Document]:
    """Return the splits; missing ones take the documents of others."""
    train, reward, test = fill_parts(parts, partial(_split_off, source=source, bad=bad))
    reward = _keep_apart(reward, test, bad)
    train = _keep_apart(train, [*reward, *test], bad)
    for part in (train, reward, test):
        bad.require(part, source)
    return Splits(train, reward, test, tuple(bad.lines))


def _keep_apart(earlier: Sequence[Document], later: Sequence[Document], bad: BadExamples) -> list[Document]:
    """Return the documents whose text is not in a later part, and keep a line about each other one."""
    texts = {document.text: document.key for document in later}
    bad.lines += [f"{d.key} is left out: {texts[d.text]} has the same text" for d in earlier if d.text in texts]
    return [document for document in earlier if document.text not in texts]


def _split_off(
    documents: Sequence[Document], shares: Sequence[float], source: str, bad: BadExamples
) -> tuple[list[list[Document]], list[Document]]:
    """Return a share of the documents for each of the shares, and the rest; equal texts stay together."""
    found = split_off(documents, [d.text for d in documents], shares)
    if found is None:
        cut = [section for document in documents for section in sections(document)]
        found = split_off(cut, [d.text for d in cut], shares)
    if found is None:
        raise ValueError(
            f"{source}: too little text to divide: expected {len(shares) + 1} or more documents, or sections of "
            f"{SECTION_CHARACTERS:,} characters{bad.last_skipped}"
        )
    return found


def sections(document: Document) -> list[Document]:
    """Cut a document at blank lines into sections of at least `SECTION_CHARACTERS`, and a long one into about `SECTIONS`.

    A single file of prose can then be divided, although neighboring sections are parts of one text.
    """
    least = max(SECTION_CHARACTERS, len(document.text) // SECTIONS)
    texts = [""]
    for piece in re.split(r"(\n\s*\n)", document.text):
        if len(texts[-1]) >= least and piece.strip():
            texts.append("")
        texts[-1] += piece
    return [Document(f"{document.key}.{n}", text) for n, text in enumerate(texts) if text.strip()]
