"""Writes small tables like those that ViLT's scripts make, for tests."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image


def jpeg(shade: int, size: tuple[int, int] = (24, 16), comment: str = "") -> bytes:
    """A small gray JPEG; with another comment it is another image."""
    buffer = io.BytesIO()
    Image.new("L", size, shade).save(buffer, format="JPEG", comment=comment)
    return buffer.getvalue()


def write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    """An arrow file with the rows; the types follow from the values unless a schema is given."""
    table = pa.Table.from_pylist(rows, schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def vqa_row(image_id: int, shade: int = 128, **changes: Any) -> dict[str, Any]:
    """An image with two questions."""
    row = {
        "image": jpeg(shade, comment=str(image_id)),
        "questions": [f"What is in {image_id}?", "Is it grey?"],
        "answers": [["Heron", "2 herons"], ["yes", "no"]],
        "answer_labels": [[3, 4], [0, 1]],
        "answer_scores": [[1.0, 0.6], [0.3, 0.9]],
        "image_id": image_id,
        "question_id": [image_id * 1000, image_id * 1000 + 1],
        "split": "val",
    }
    return row | changes


def write_vqa(folder: Path) -> Path:
    """Two images in train, twelve in val."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "vqav2_train.arrow", [vqa_row(7), vqa_row(9)])
    write_table(folder / "vqav2_val.arrow", [vqa_row(100 + n, shade=20 * n) for n in range(12)])
    return folder


def nlvr2_row(pair: str, shade: int = 128, **changes: Any) -> dict[str, Any]:
    """A pair of images with two sentences."""
    row = {
        "image_0": jpeg(shade, comment=f"{pair} left"),
        "image_1": jpeg(255 - shade, comment=f"{pair} right"),
        "questions": ["Both are grey.", f"The set is {pair.split('-')[1]}."],
        "answers": ["True", "False"],
        "identifier": pair,
    }
    return row | changes


def write_nlvr2(folder: Path) -> Path:
    """Twenty image sets of two pairs in train, one in dev and in test1."""
    folder.mkdir(parents=True, exist_ok=True)
    train = [nlvr2_row(f"train-{n}-{pair}", shade=n) for n in range(20) for pair in range(2)]
    write_table(folder / "nlvr2_train.arrow", train)
    for split in ("dev", "test1"):
        write_table(folder / f"nlvr2_{split}.arrow", [nlvr2_row(f"{split}-3-0"), nlvr2_row(f"{split}-3-1")])
    return folder


def caption_row(name: str, shade: int = 128, **changes: Any) -> dict[str, Any]:
    """An image with five captions."""
    captions = [f"Caption {n}  of {name}." for n in range(5)]
    return {"image": jpeg(shade, comment=name), "caption": captions, "image_id": f"{name}.jpg", "split": "train"} | changes


def write_captions(folder: Path, prefix: str = "f30k_caption_karpathy") -> Path:
    """Six images in train, five in val and in test."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 6), ("val", 5), ("test", 5)):
        rows = [caption_row(f"{split}{n}", shade=n) for n in range(count)]
        write_table(folder / f"{prefix}_{split}.arrow", rows)
    return folder
