"""Check every measured figure of README, docs and LEADERBOARD.md against `benchmarks/claims.yaml`.

    python -m benchmarks.claims     prints what is wrong, and exits with 1 if something is

`claims.yaml` is a list of claims. Each quotes pages, with the figures in braces:

    - texts: ["| a turn of 3 | {4.3} ({1.48}) |"]
      pages: [docs/performance.md]
      command: python -m benchmarks.masks
      measured: 2026-11-28, 2 cores of an AMD EPYC

`record: [FILE]` or `record: [FILE, HEADING, WORDS]` stands instead of `measured` where a file of this repository holds the
figures: all figures of a text are then on one line of it, below the heading and with the words, if these are given. With
several WORDS, each figure is on some line with one of them, between the heading and the next line that begins with "# ".
Records are files that a command wrote, or its output, kept in `benchmarks/records`.

`same: true` says that all texts are about one quantity. `given`, a reason, stands instead of command and proof for figures
that nobody measures, such as published scores.

Faults are a text that is on none of its pages, a page that has none of the texts, any page that has a text with other
figures, a record that does not round to the figures, two figures for one quantity, and a figure that no claim has.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import yaml

from benchmarks.harness import make_parser
from das_gym.commands.settings import build

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "benchmarks" / "claims.yaml"

FIGURE = re.compile(r"\{([^{}]+)\}")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
ANY_FIGURE = r"([-+]?\d[\d,]*(?:\.\d+)?)"
UNITS = r"%|s|ms|seconds?|minutes?|hours?|points?|times|nats|MB|MiB|GB|GiB"
UNCLAIMED = re.compile(rf"(?<![\w.-])-?(?:\d+\.\d+|\d[\d,]* (?:{UNITS})(?!\w))")
"""What looks like a measured figure: a decimal fraction, or a number with a unit."""


@dataclass(frozen=True)
class Claim:
    """Figures that were measured by one command.

    Attributes:
        texts: Words of the pages, with each figure in braces. Any white space is the same.
        pages: Paths of the pages, relative to the repository.
        command: The command that prints the figures.
        record: A file that holds the figures, a heading in it, and words of their line or lines; all but the file may be
            left out.
        measured: Date and machine of a measurement without a record.
        given: Why the figures are not measured.
        same: Whether all texts are about one quantity.

    Raises:
        ValueError: a text has no figure, or there is not exactly one proof.
    """

    texts: tuple[str, ...]
    pages: tuple[str, ...]
    command: str = ""
    record: tuple[str, ...] = ()
    measured: str = ""
    given: str = ""
    same: bool = False

    def __post_init__(self) -> None:
        name = self.texts[0]
        if [bool(self.record), bool(self.measured), bool(self.given)].count(True) != 1:
            raise ValueError(f"claim {name!r}: expected one of record, measured and given")
        if bool(self.given) == bool(self.command):
            raise ValueError(f"claim {name!r}: expected a command, or given")
        if self.measured and not re.match(r"20\d\d-\d\d-\d\d, \S", self.measured):
            raise ValueError(f"claim {name!r}: measured: got {self.measured!r}, expected 'DATE, MACHINE'")
        for text in self.texts:
            if not figures_of(text):
                raise ValueError(f"claim {text!r}: expected a figure in braces")


def figures_of(text: str) -> list[str]:
    """Return the figures of a claim's text as a page prints them."""
    return FIGURE.findall(text)


def quote_of(text: str) -> str:
    """Return a claim's text as a page has it."""
    return squeeze(FIGURE.sub(r"\1", text))


def template_of(text: str) -> str:
    """Return a claim's text without its figures."""
    return FIGURE.sub("{}", squeeze(text))


def squeeze(text: str) -> str:
    """Return a text with each run of white space as one blank."""
    return " ".join(text.split())


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """Read the claims of a file; raise ValueError for an entry with an unknown or missing field."""
    return [build(Claim, entry, "field") for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def read_pages(root: Path = ROOT) -> dict[str, str]:
    """Return the texts of README, LEADERBOARD.md and docs by path."""
    paths = [root / "README.md", root / "LEADERBOARD.md", *sorted((root / "docs").glob("*.md"))]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths if path.is_file()}


def faults_of(claims: Sequence[Claim], root: Path = ROOT) -> list[str]:
    """Return a sentence for everything that is wrong."""
    pages = read_pages(root)
    squeezed = {name: squeeze(text) for name, text in pages.items()}
    found: list[str] = []
    for claim in claims:
        found += page_faults(claim, squeezed)
        found += [fault for text in claim.texts if claim.record for fault in record_faults(text, claim.record, root)]
    return [*found, *quantity_faults(claims), *unclaimed(claims, pages)]


def page_faults(claim: Claim, pages: Mapping[str, str]) -> Iterator[str]:
    """Yield texts that are missing, or stand somewhere with other figures. Pages are squeezed."""
    named = {name: pages.get(name, "") for name in claim.pages}
    for text in claim.texts:
        quote = quote_of(text)
        if not any(quote in page for page in named.values()):
            yield f"{', '.join(named)}: there is no {quote!r}"
        pattern = re.compile(ANY_FIGURE.join(re.escape(part) for part in template_of(text).split("{}")))
        for name, page in pages.items() if not claim.given else ():
            for match in pattern.finditer(page):
                if list(match.groups()) != figures_of(text):
                    yield f"{name}: {match[0]!r}, claimed is {quote!r}"
    for name, page in named.items():
        if not any(quote_of(text) in page for text in claim.texts):
            yield f"{name}: there is none of {[quote_of(text) for text in claim.texts]}"


def record_faults(text: str, record: Sequence[str], root: Path) -> Iterator[str]:
    """Yield that a record does not hold the figures of a text."""
    name, heading, *words = (*record, "") if len(record) < 2 else record
    path = root / name
    if not path.is_file():
        yield f"there is no record {name}"
        return
    _, _, below = path.read_text(encoding="utf-8").partition(heading or "\n")
    if len(words) > 1:
        below = below.partition("\n# ")[0] if heading else below
        lines = [" ".join(line for line in below.splitlines() if any(word in line for word in words))]
    else:
        lines = [line for line in below.splitlines() if all(word in line for word in words)]
    for line in lines:
        numbers = [Decimal(number.replace(",", "")) for number in NUMBER.findall(line)]
        if all(any(rounds_to(number, figure) for number in numbers) for figure in figures_of(text)):
            return
    yield f"{name}: no line {' / '.join(record[1:])} has the figures of {quote_of(text)!r}"


def rounds_to(number: Decimal, figure: str) -> bool:
    """Return whether a number, or it in percent, rounds to a printed figure. A figure without a sign has any sign."""
    printed = Decimal(figure.replace(",", ""))
    half = Decimal(1).scaleb(int(printed.as_tuple().exponent)) / 2
    value = number if figure[0] in "+-" else abs(number)
    return abs(value - printed) <= half or abs(100 * value - printed) <= half


def quantity_faults(claims: Sequence[Claim]) -> Iterator[str]:
    """Yield two figures for one quantity, and texts that are claimed twice."""
    seen: set[str] = set()
    for claim in claims:
        if claim.same and len({tuple(figures_of(text)) for text in claim.texts}) > 1:
            yield f"one quantity has several figures: {[quote_of(text) for text in claim.texts]}"
        for text in claim.texts:
            if template_of(text) in seen:
                yield f"claimed twice: {quote_of(text)!r}"
            seen.add(template_of(text))


def unclaimed(claims: Sequence[Claim], pages: Mapping[str, str]) -> Iterator[str]:
    """Yield what looks like a measured figure and is in no claim.

    Code and links are left out, and LEADERBOARD.md, which is a record.
    """
    for name, page in pages.items():
        if name == "LEADERBOARD.md":
            continue
        text = hide_code(page)
        for claim in claims:
            for quote in [hide_code(quote_of(each)) for each in claim.texts if name in claim.pages]:
                text = text.replace(quote, " | ")
        for match in UNCLAIMED.finditer(text):
            around = text[max(0, match.start() - 50) : match.end() + 20]
            yield f"{name}: no claim has {match[0]!r} of {around!r}: add it to benchmarks/claims.yaml"


def hide_code(page: str) -> str:
    """Return a page, squeezed, with a backquote for each piece of code and each link's target."""
    page = re.sub(r"^```.*?^```$|^ {4}\S.*?$|<!--.*?-->", "", page, flags=re.MULTILINE | re.DOTALL)
    return squeeze(re.sub(r"arXiv \d+\.\d+|\]\([^)]*\)|`[^`]*`", "`", page, flags=re.DOTALL))


def main() -> int:
    """Check all claims; the exit code is 1 if something is wrong."""
    make_parser("claims", __doc__).parse_args()
    claims = load_claims()
    faults = faults_of(claims)
    print("\n".join(faults) or f"{len(claims)} claims hold")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
