"""The arrow tables that the scripts of ViLT and METER write.

A data root may hold them for one or several tasks. They are read instead of original files. A single table may be the data
root: a folder may hold two data sets of one task.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.data.entries import BadExamples, Fields, IllustratedExample, check_fields, first_few
from das_gym.data.rows import table_of_file
from das_gym.files import absolute_path, expand_home


@dataclass(frozen=True, slots=True)
class ArrowFormat:
    """How the arrow tables of a task are named, and their columns besides those of images.

    Attributes:
        task: The task.
        prefixes: How the file names begin; `_<split>.arrow` follows.
        fields: Columns with one value for each image, and its type.
        lists: Columns with a list for each image, all of one length, and the type of its elements.
    """

    task: str
    prefixes: tuple[str, ...]
    fields: Fields
    lists: Fields

    def is_in(self, data_root: str | Path) -> bool:
        """Return True if a data root is a table of this format, or a folder with one, by the names of files."""
        root = expand_home(data_root)
        return root.suffix == ".arrow" or any(any(root.glob(f"{prefix}_*.arrow")) for prefix in self.prefixes)

    def find(self, data_root: str | Path) -> dict[str, Path]:
        """Return the tables of a data root, or of the table that it is, by split; ValueError for several data sets."""
        root = absolute_path(data_root)
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

    def entries(self, path: Path, bad: BadExamples) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the entries of a table whose rows are an image with lists of questions, answers or captions.

        `bad` receives rows that lack a value, or whose lists are empty or differ in length.

        Yields:
            The place of an entry, for errors, and its values: one of each list, those of `fields`, `row`, and its `number`
                in the row.
        """
        table = table_of_file(path, path.parent)
        types: Fields = {**self.fields, **dict.fromkeys(self.lists, list)}
        if not len(table.rows):
            raise ValueError(f"{path} has no rows, expected one or more")
        for where, (row, values) in table.entries(types):
            try:
                check_fields(values, types, where)
                lengths = {name: len(values[name]) for name in self.lists}
                if set(lengths.values()) == {0} or len(set(lengths.values())) > 1:
                    got = ", ".join(f"{length} in {name}" for name, length in lengths.items())
                    expected = "equal numbers of one or more"
                    raise ValueError(f"{where}: lists of different lengths: got {got}, expected {expected}")
            except ValueError as error:
                bad.report(error)
                continue
            for number, elements in enumerate(zip(*(values[name] for name in self.lists), strict=True)):
                entry = {**values, **dict(zip(self.lists, elements, strict=True)), "row": row, "number": number}
                yield f"{where}, entry {number}", entry

    def read(
        self, path: Path, make: Callable[[dict[str, Any], str], IllustratedExample], bad: BadExamples
    ) -> list[IllustratedExample]:
        """Return the examples that `make` makes of a table's entries and their places, if their images can be used."""
        return bad.drop_broken(bad.parse(self.entries(path, bad), make), str(path))


def require_table(tables: Mapping[str, Path], *splits: str) -> Path:
    """Return the first table that exists of some splits; raise FileNotFoundError for none."""
    for split in splits:
        if split in tables:
            return tables[split]
    path = next(iter(tables.values()))
    got = first_few([path.name for path in tables.values()])
    raise FileNotFoundError(f"{path.parent} has no table of {' or '.join(splits)}: got {got}")
