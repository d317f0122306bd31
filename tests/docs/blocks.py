"""The code blocks of README and docs, and what is to be done with each.

A comment of HTML in front of a block sets how a test treats it; the page does not show it:

    <!-- skip: why -->             it is read, not run: modules, commands, named configs and settings exist
    <!-- test: steps=2 -->         it is run with these settings behind its commands, for time
    <!-- test: old => new -->      it is run with this text of Python replaced

What a page shows as printed is compared with the output: a block of text with that of the block in front of it, and the
comment behind `print(...)`, up to a colon, with a printed line. Nothing is compared where `test` changes what runs.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_MARK = r"(?:<!-- (?P<mark>skip|test): (?P<words>.*?) -->\n+)?"
_FENCED = r"^```(?P<language>\w*)\n(?P<fenced>(?:.*\n)*?)```$"
_INDENTED = r"(?<=\n\n)(?P<indented>    (?:python|\.venv|pip|das-)\S* .*\n(?:    .*\n)*)"
_BLOCK = re.compile(rf"{_MARK}(?:{_FENCED}|{_INDENTED})", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: `python`, `bash`, `json`, `text`.
        code: Its text.
        line: Where it begins in its page.
        mark: `skip`, `test`, or None: it is run as it stands.
        words: What the mark says.
    """

    language: str
    code: str
    line: int
    mark: str | None
    words: str

    def commands(self) -> list[list[str]]:
        """Of `bash`: the words of each command of das_gym and its benchmarks, see `commands_of`."""
        return [command for line in self.code.splitlines() for command in commands_of(line)]

    def lines(self) -> list[str]:
        """Its lines that are more than a comment."""
        return [line for line in self.code.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    def results(self) -> list[str]:
        """Of Python: the lines that comments behind `print(...)` show, without the explanation after a colon."""
        found = re.findall(r"^print\(.*\)  # (.*)$", self.code, re.MULTILINE)
        return [shown.partition(": ")[0] for shown in found]


_WORD = r"(?:'[^']*'|[^\s'\")`;#&]+)"
_COMMAND = re.compile(rf"python3? -m (?:das_gym\.)?(agents|adapt|benchmarks\.\w+)\b((?: +{_WORD})*)")


def commands_of(text: str) -> list[list[str]]:
    """The words of each command of das_gym in a text: `agents` or `adapt` or a benchmark, then what stands behind it."""
    return [[match[1], *shlex.split(match[2])] for match in _COMMAND.finditer(text)]


def blocks_of(text: str) -> list[Block]:
    """The blocks of a page, in their order."""
    found = []
    for match in _BLOCK.finditer(text):
        language = match["language"] if match["indented"] is None else "bash"
        code = match["fenced"] if match["indented"] is None else re.sub("^    ", "", match["indented"], flags=re.MULTILINE)
        line = text.count("\n", 0, match.start("fenced" if match["indented"] is None else "indented")) + 1
        found.append(Block(language or "text", code, line, match["mark"], match["words"] or ""))
    return found
