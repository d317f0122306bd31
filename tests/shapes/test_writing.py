"""What all Shapes data sets share: bytes that follow from the arguments, versions, and roots that are written once."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from das_gym.shapes import captions, nlvr2, snli_ve, vqa
from das_gym.shapes.captions import shapes_captions_root, write_shapes_captions
from das_gym.shapes.nlvr2 import shapes_nlvr2_root, write_shapes_nlvr2
from das_gym.shapes.snli_ve import shapes_snli_ve_root, write_shapes_snli_ve
from das_gym.shapes.vqa import shapes_root, write_shapes

FEW = {"train": 4, "val": 4, "test": 4}
KINDS: dict[str, tuple[Callable[..., Path], Callable[..., Path], dict[str, Any], tuple[Any, ...]]] = {
    "vqa": (write_shapes, shapes_root, {"train_scenes": 20, "val_scenes": 10}, (0, 4, 4)),
    "nlvr2": (write_shapes_nlvr2, shapes_nlvr2_root, {"directories": 2, "directory_sets": 2, "test_sets": 3}, (0, 2, 1, 1)),
    "captions": (write_shapes_captions, shapes_captions_root, {"scenes": FEW}, (0, FEW)),
    "snli_ve": (write_shapes_snli_ve, shapes_snli_ve_root, {"scenes": {"train": 9, "dev": 2, "test": 2}}, (0, FEW)),
}
"""What writes a data set, what returns the bundled one, arguments of a small one, and defaults that write a tiny one."""

VERSIONS = {"vqa": vqa.VERSION, "nlvr2": nlvr2.VERSION, "captions": captions.VERSION, "snli_ve": snli_ve.VERSION}
DIGESTS = {
    **{("vqa", 1): "3be311e04ba8e4b4", ("nlvr2", 1): "37b76144b6ebeaf3"},
    **{("captions", 1): "0d21de7d2a0c565e", ("snli_ve", 1): "e6b61dcbc1276f45"},
}
"""Digests of the texts and labels of a small data set, by kind and version."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_write_the_same_bytes(kind: str, tmp_path: Path):
    """Where the digest fails, raise the VERSION of the module, or users read stale data, and put the digest above."""
    write, _, arguments, _ = KINDS[kind]
    one, again = (contents(write(tmp_path / name, **arguments)) for name in ("one", "again"))
    assert one == again
    other = contents(write(str(tmp_path / "other"), seed=1, **arguments))
    assert not set(other.values()) & set(one.values())
    texts = [content for name, content in one.items() if ".json" in name]
    assert blake2b(b"".join(texts)).hexdigest()[:16] == DIGESTS[kind, VERSIONS[kind]]


@pytest.mark.parametrize(
    ("kind", "name", "arguments"),
    [
        *((kind, "seed", {"seed": -1}) for kind in KINDS),
        ("vqa", "train_scenes", {"train_scenes": 0}),
        ("nlvr2", "directories", {"directories": 1}),
        ("captions", "test", {"scenes": {**FEW, "test": 3}}),
        ("snli_ve", "dev", {"scenes": {"train": 1}}),
    ],
)
def test_numbers_out_of_range_are_named(kind: str, name: str, arguments: dict[str, Any], tmp_path: Path):
    with pytest.raises(ValueError, match=f"`{name}`"):
        KINDS[kind][0](tmp_path / "data", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["nlvr2", "captions"])
def test_root_is_written_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, root, _, tiny = KINDS[kind]
    monkeypatch.setattr(write, "__defaults__", tiny)
    first = root(tmp_path)
    assert first.name == f"shapes-{kind}-{VERSIONS[kind]}"
    monkeypatch.setattr(write, "__defaults__", (-1, *tiny[1:]))  # which would raise
    assert root(tmp_path) == first
