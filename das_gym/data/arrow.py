"""Arrow tables as the scripts of ViLT and METER write them: finding them, and reading their entries.

A data root holds the tables of one or of several tasks, which are read instead of original files. A single table may be the
data root, which is needed where a folder holds two data sets of one task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from das_gym.data.bad_examples import BadExamples, Illustrated
from das_gym.data.entries import first_few
from das_gym.data.tables import open_table, plain_rows
from das_gym.files import absolute, at_home

Example = TypeVar("Example", bound=Illustrated)


@dataclass(frozen=True, slots=True)
class ArrowFormat:
    """How the arrow tables of a task are named, and their columns.

    Attributes:
        task: The task.
        prefixes: How the file names begin; `_<split>.arrow` follows.
        columns: The kind of each column that is read, see `das_gym.data.tables.open_table`.
    """

    task: str
    prefixes: tuple[str, ...]
    columns: Mapping[str, str]

    def is_in(self, data_root: str | Path) -> bool:
        """Return whether a data root holds tables of this format, or is one."""
        root = at_home(data_root)
        return root.suffix == ".arrow" or any(any(root.glob(f"{prefix}_*.arrow")) for prefix in self.prefixes)

    def find(self, data_root: str | Path) -> dict[str, Path]:
        """Return the tables of a data root, or of the table that it is, by split; ValueError for several data sets."""
        root = absolute(data_root)
        folder = root.parent if root.suffix == ".arrow" else root
        names = [root.name] if root.suffix == ".arrow" else [path.name for path in folder.glob("*.arrow")]
        found = [prefix for prefix in self.prefixes if any(name.startswith(f"{prefix}_") for name in names)]
        if len(found) > 1:
            raise ValueError(f"{root} holds several data sets: got {' and '.join(found)}. Pass one table as `data_root`")
        if not found:
            patterns = " or ".join(f"{prefix}_<split>.arrow" for prefix in self.prefixes)
            raise FileNotFoundError(f"{root} is or holds no table of {self.task}, expected {patterns}")
        paths = sorted(folder.glob(f"{found[0]}_*.arrow"))
        return {path.stem.removeprefix(f"{found[0]}_"): path for path in paths}

    def read(self, path: Path, make: Callable[[dict[str, Any], str], Example], bad: BadExamples) -> list[Example]:
        """Return the examples that `make` makes of a table's entries and their places, if their images can be used."""
        return bad.drop_broken(bad.parse(read_items(path, self.columns, bad), make), str(path))


def require_table(tables: Mapping[str, Path], *splits: str) -> Path:
    """Return the first table that exists of some splits; raise FileNotFoundError for none."""
    for split in splits:
        if split in tables:
            return tables[split]
    path = next(iter(tables.values()))
    got = first_few([path.name for path in tables.values()])
    raise FileNotFoundError(f"{path.parent} has no table of {' or '.join(splits)}: got {got}")


def read_items(path: Path, columns: Mapping[str, str], bad: BadExamples) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of a table whose rows are an image with lists of questions, answers or captions.

    Columns of bytes are checked and left out. `bad` receives rows whose lists are empty or differ in length.

    Yields:
        The place of an entry, for errors, and its values: one of each list, those of the other columns, `row`, and its
            `number` in the row.
    """
    table = open_table(path, [name for name, kind in columns.items() if kind != "bytes"], columns)
    if not table.num_rows:
        raise ValueError(f"{path} has no rows, expected one or more")
    lists = [name for name, kind in columns.items() if kind.startswith("list")]
    for row, values in enumerate(plain_rows(table)):
        where = f"{path}: row {row}"
        lengths = [len(values[name] or ()) for name in lists]
        if not lengths[0] or len(set(lengths)) > 1:
            got = ", ".join(f"{length} in {name}" for name, length in zip(lists, lengths, strict=True))
            error = ValueError(f"{where}: lists of different lengths: got {got}, expected equal numbers of one or more")
            bad.report(error)
            continue
        for number, entry in enumerate(zip(*(values[name] for name in lists), strict=True)):
            one = {**values, **dict(zip(lists, entry, strict=True)), "row": row, "number": number}
            yield f"{where}, entry {number}", one
