"""Whatever a file in LLaVA's format holds, it is read, or one line names the file."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from das_gym.tasks.answering.reading import load_answers
from tests.tasks.answering.making import assert_disjoint, draw, entry, write

TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(("<image>", "<image>\nWhat?", "a.png", "human", "gpt", "../x", "/")))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
TURNS = st.lists(
    st.fixed_dictionaries({"from": st.one_of(st.sampled_from(("human", "gpt")), VALUES), "value": TEXTS}), max_size=4
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "id": VALUES,
        "image": st.one_of(VALUES, st.lists(TEXTS, max_size=2)),
        "conversations": st.one_of(VALUES, TURNS),
        "answer_type": VALUES,
        "options": st.one_of(VALUES, st.lists(TEXTS, max_size=3)),
        "video": VALUES,
    },
)


def folder(root: Path, odd: list[Any]) -> Path:
    draw(*(root / f"{n}.png" for n in range(4)))
    write(root / "data.json", [*(entry(n) for n in range(4)), *odd])
    return root


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(VALUES, FIELDS.map(lambda fields: entry(2) | fields)), min_size=1, max_size=3))
def test_any_entry_is_read_or_named(odd):
    with tempfile.TemporaryDirectory() as place:
        root = folder(Path(place) / "mine", odd)
        refused = ""
        try:
            assert_disjoint(load_answers(root))
        except (ValueError, FileNotFoundError) as error:
            refused = str(error)
        assert not refused or refused.startswith(f"{root / 'data.json'}: ")
        assert "\n" not in refused
        splits = load_answers(root, "skip")
        assert_disjoint(splits)
        assert len(splits.train) + len(splits.reward) + len(splits.test) >= 4
