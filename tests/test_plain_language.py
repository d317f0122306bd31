"""Phrases for which the field has a term: how many there are per 1,000 lines of each part of the repository."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LIMITS = {
    "das_gym/**/*.py": 1.0,
    "agents/**/*.py": 1.0,
    "adapt/**/*.py": 1.0,
    "benchmarks/**/*.py": 2.0,
    "tests/**/*.py": 2.0,
    "docs/*.md": 3.0,
    "*.md": 3.0,
}
"""Phrases allowed per 1,000 lines."""

PHRASES = {
    r"\b(is|are|was|be|been|were|nobody is) told\b|\btells?\b|\bto tell\b": "report, warn, log, print, pass, describe",
    r"\b(says?|said) (what|which|who|so|how|why|of|that|nothing|whether)\b": "describe, state, return, raise",
    r"\bno number\b|\bis not a number\b": "NaN, non-finite, diverged",
    r"\bfrom elsewhere\b": "untrusted, third-party, remote",
    r"\b(one's|a person's|somebody's) own\b": "custom, user-defined, separate",
    r"\b(somebody|nobody|anybody|whoever|a person|persons)\b": "the user, a caller; or the passive",
    r"\bpictures?\b": "image, figure, plot",
    r"\banew\b": "again, from scratch",
    r"\blearnt\b": "learned",
    r"\b(go|goes|going|gone|went) on\b": "resume, continue",
    r"\bgone\b": "deleted, removed, pruned, missing",
    r"\bis (none|no) (of|for|class|such|setting|search)\b": "is not supported, unknown",
    r"\b(whole|unskipped) model\b": "full model",
    r"\b(make|makes|made) (much |more )?of (it|them|the|that|what)\b": "produce, compute, return",
    r"\b(comes?|came) to\b(?! be)": "amounts to, results in, equals",
    r"\bin (the|its|their) places? of\b": "instead of, replaces",
    r"\bso (many|much|few)\b": "n, at most n",
    r"\b(beside|amid|likewise|begun|hardly)\b": "next to, during, in the same way, started, barely",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bway out\b": "hint, remedy",
    r"\b(is|are) taken (to|for|as)\b": "is assumed, is treated as",
}
"""By regular expression, what the field says."""

ALLOWED = (
    r"\btold (their|its|the) rewards?\b",  # ask/tell: an agent is told rewards
    r"\btell\(|\bask/tell\b|\.tell\b|\btell`",
)
"""Phrases that are right where they stand."""


def documented_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of Markdown, or the comments and strings of Python, with their numbers."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            yield from enumerate(token.string.splitlines(), token.start[0])


ANY_PHRASE = re.compile("|".join(PHRASES), re.IGNORECASE)


def phrases_in(path: Path) -> list[str]:
    """Return each phrase of a file with its place and what to write instead."""
    found = []
    for number, line in documented_lines(path):
        if not ANY_PHRASE.search(line) or any(re.search(allowed, line) for allowed in ALLOWED):
            continue
        for pattern, better in PHRASES.items():
            if match := re.search(pattern, line, re.IGNORECASE):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}; write: {better}")
    return found


@pytest.mark.parametrize("part", LIMITS)
def test_phrases_stay_below_the_limit(part):
    paths = [path for path in sorted(ROOT.glob(part)) if path != Path(__file__) and ".venv" not in path.parts]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
    found = [phrase for path in paths for phrase in phrases_in(path)]
    assert len(found) <= LIMITS[part] * lines / 1000, "\n".join(found)
