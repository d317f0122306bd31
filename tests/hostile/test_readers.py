"""Every reader of files, on damaged and invented bytes: it reads them, or raises ValueError with the name of the file."""

import contextlib
import json
import pickle
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from das_gym.adapt.choosing import read_front
from das_gym.adapt.compare.record import Trial
from das_gym.adapt.training import Trainer, adamw
from das_gym.agents.comparing.runner import read_trials
from das_gym.agents.searching.record import SearchResult
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from das_gym.data.entries import BadExamples, read_entries
from das_gym.data.images import load_image
from das_gym.data.rows import CellImage, table_of_file
from das_gym.files import read_json, read_json_object
from das_gym.models.tensor_files import read_tensors, write_tensors
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.budget import given_costs
from das_gym.tables.table import SubnetTable
from das_gym.tasks.answering.reading import load_answers
from das_gym.tasks.nlvr2 import load_nlvr2
from das_gym.tasks.retrieval import load_captions
from tests.hostile.data_sets import DATA_SETS
from tests.tables.test_table import make_table, make_table_of_examples

PROFILE = settings(
    max_examples=25,
    deadline=timedelta(seconds=20),
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)

TENSORS = {"a": torch.arange(6.0), "b.c": torch.ones(2, 3)}
DESCRIBED = {"format": "das_gym adaptation 1", "task": "vqa", "answers": ["yes"], "base": "0", "mask": [1, 0], "info": {}}


def image_writer(kind: str, mode: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
        Image.fromarray(noise).convert(mode).save(path, format=kind)

    return write


def arrow(path: Path) -> None:
    table = pa.table({"image": [b"x"], "questions": [["what"]], "image_id": [3]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_arrow(path: Path) -> None:
    table = table_of_file(path, path.parent)
    for where, (row, values) in table.entries(("image", "questions", "image_id")):
        table.images(row, "image", values["image"], where)
    CellImage(path, 0).open()


def record(path: Path) -> None:
    scores = {"reward": 0.5, "loss": 1.0, "metric": 0.5, "macs": 8, "macs_saved": 0.2}
    rest = {"env_id": "X-v0", "env_kwargs": {}, "agent": "bandit", "agent_kwargs": {}, "n_skipped": 1, "macs_full": 10}
    rest |= {"seed": 0, "masks_per_turn": 1, "evaluations": 0, "layer_names": ["a", "b"], "versions": {}}
    answer = {"mask": [1, 0], **scores, "skipped_layers": ["a"]}
    path.write_text(json.dumps({"format": 1, **rest, **answer}))


def trainer(path: Path) -> Trainer:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = adamw([(list(model.parameters()), 0.1)], 0.01)
    return Trainer({"model": model}, optimizer, 2, lambda _: 1.0, path, save_every=1)


def trained_until(path: Path) -> None:
    first = trainer(path)
    weight = first.optimizer.param_groups[0]["params"][0]
    first.run(lambda _: {"loss": weight.sum()}, "first")


LINE = {"macs": 2, "macs_full": 3, "drawn": "x", "removed": 0.4, "low": 0.1, "high": 0.2}
LINE |= {"variant": "bayes", "seed": 0, "mask": [0, 1], "evaluations": 4, "seconds": 0.5, "reward_loss": 1.5}
TRIAL = {"variant": "full", "rate": 1e-3, "seed": 0, "reward": 0.5, "reward_loss": 1.0, "mask": [0]}
TRIAL |= {"updated": 1, "trained": 1, "seconds": 1.0}
POINT = {"mask": [0, 1], "saved": 0.2, "loss": 1.0, "skipped_layers": ["a"]}
FIGURES = {"full": 9.0, "unskipped": 9.5, "savings": [1.0, 2.0]}

RECORDS: dict[str, tuple[str, Any, Callable[[Path], Any]]] = {
    "compared": ("compare.json", {"trials": [LINE]}, lambda path: read_trials(path.parent, Trial)),
    "trials": ("compare.json", {"trials": [TRIAL]}, lambda path: read_trials(path.parent, Trial)),
    "front": ("front.json", {"env_id": "X-v0", "env_kwargs": {}, "points": [POINT]}, read_front),
    "costs": ("a.json", {"costs": {"latency_saved": FIGURES}}, lambda path: given_costs(str(path))),
}
"""What commands keep as JSON and read again: file, content and reader."""

READERS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    **{
        f"{kind} {mode}": (f"a.{kind}", image_writer(kind, mode), load_image)
        for kind, mode in [("PNG", "RGB"), ("PNG", "P"), ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "L"), ("TIFF", "RGB")]
    },
    "json": ("a.json", lambda path: path.write_text('{"a": [1, 2.5, "x", null], "b": {"c": true}}'), read_json),
    "entries": (
        "a.json",
        lambda path: path.write_text('{"a": 1}\n{"a": 2}\n'),
        lambda path: list(read_entries(path, BadExamples("raise"))),
    ),
    "settings": (
        "config.json",
        lambda path: path.write_text('{"seed": 1, "plugins": []}'),
        read_json_object,
    ),
    "record": ("search.json", record, SearchResult.load),
    **{
        name: (file, lambda path, content=content: path.write_text(json.dumps(content)), read)
        for name, (file, content, read) in RECORDS.items()
    },
    "arrow": ("a.arrow", arrow, read_arrow),
    "table": ("a.npz", lambda path: make_table().save(path), SubnetTable.load),
    "table of examples": ("a.npz", lambda path: make_table_of_examples().save(path), SubnetTable.load),
    "safetensors": ("a.safetensors", lambda path: write_tensors(path, TENSORS, {"model": "x"}), read_tensors),
    "adaptation": ("a.safetensors", lambda path: write_tensors(path, TENSORS, DESCRIBED), Adaptation.load),
    "zip checkpoint": ("a.ckpt", lambda path: torch.save({"state_dict": TENSORS, "x": Path}, path), read_tensors),
    "old checkpoint": (
        "a.ckpt",
        lambda path: torch.save({"state_dict": TENSORS}, path, _use_new_zipfile_serialization=False),
        read_tensors,
    ),
    "training": ("a.pt", lambda path: trained_until(path), lambda path: trainer(path).resume()),
    "pickle": ("a.ckpt", lambda path: path.write_bytes(pickle.dumps({"a": [1, {2}]})), read_tensors),
    **DATA_SETS,
}


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes like `whole`: some changed, cut off, put in or repeated; or others altogether."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "number", "repeat", "other"]))
        if how == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=8))
        elif how == "number":  # a length that lies
            content[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff"]))
        elif how == "repeat":
            content += content[at : at + 64]
        else:
            content = bytearray(draw(st.binary(max_size=64)))
    return bytes(content)


def check_named(read: Callable[[Path], Any], path: Path) -> None:
    """A reader reads the file, or names it."""
    try:
        read(path)
    except (ValueError, FileNotFoundError) as error:
        told = str(error)
    else:
        return
    assert path.name in told, told


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes_are_named(name, tmp_path):
    file, write, read = READERS[name]
    path = tmp_path / file
    write(path)
    whole = path.read_bytes()

    @PROFILE
    @given(damaged(whole))
    def try_bytes(content: bytes) -> None:
        path.write_bytes(content)
        check_named(read, path)

    try_bytes()


CORPUS = Path(__file__).with_name("corpus")
"""Bytes that were read wrongly once, in one folder per reader."""


@pytest.mark.parametrize("kept", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_bytes_that_were_read_wrongly_once_are_named(kept, tmp_path):
    file, _, read = READERS[kept.parent.name]
    path = tmp_path / file
    path.write_bytes(kept.read_bytes())
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("name", ["record", "settings", *RECORDS])
def test_values_of_other_kinds_are_named(name, tmp_path):
    file, write, read = READERS[name]
    path = tmp_path / file
    write(path)
    before = json.loads(path.read_text())

    @PROFILE
    @given(st.sampled_from(sorted(before)), JSON)
    def try_value(field: str, value: Any) -> None:
        path.write_text(json.dumps({**before, field: value}))
        check_named(read, path)

    try_value()


NAMES = [
    "a" * 5000,
    "a" * 300,
    "é" * 200,
    "a/" * 3000 + "b",
    "x\0",
    "\ud800",
    "../" * 50 + "dev/zero",
    "/dev/zero",
    ".",
    "/",
    "\x1b]0;",
]


@pytest.mark.parametrize(
    ("name", "field", "load"),
    [
        ("nlvr2", "directory", load_nlvr2),
        ("karpathy", "filename", load_captions),
        ("llava", "image", load_answers),
        ("slake", "img_name", load_answers),
        ("scienceqa problems", "image", load_answers),
    ],
)
def test_invalid_image_name_is_one_bad_example(name, field, load, tmp_path):
    file, write, _ = DATA_SETS[name]
    write(tmp_path / file)
    whole = (tmp_path / file).read_text()
    first = next(re.finditer(rf'"{field}": ("[^"]*"|\d+|null)', whole))
    for other in NAMES:
        (tmp_path / file).write_text(f"{whole[: first.start(1)]}{json.dumps(other)}{whole[first.end(1) :]}")
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(tmp_path))):
            load(tmp_path)
        with contextlib.suppress(ValueError):  # the others are empty files: nothing is left, or too little
            load(tmp_path, "skip")
