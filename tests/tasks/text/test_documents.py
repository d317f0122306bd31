import itertools
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from das_gym.tasks.text.documents import Document, load_documents, sections

TEXTS = [f"document {number} " + "word " * number for number in range(20)]


def write_lines(path: Path, texts: list[str], column: str = "text") -> None:
    path.write_text("\n".join(json.dumps({column: text}) for text in texts), encoding="utf-8")


def texts_of(splits: object) -> list[list[str]]:
    return [[d.text for d in getattr(splits, name)] for name in ("train", "reward", "test")]


def test_a_tenth_of_documents_each_is_for_reward_and_test_wherever_they_come_from(tmp_path: Path):
    folders = [tmp_path / name for name in ("lines", "tables", "files")]
    for folder in folders:
        folder.mkdir()
    write_lines(folders[0] / "all.jsonl", TEXTS)
    parquet.write_table(pyarrow.table({"text": TEXTS[::-1]}), folders[1] / "data-00000-of-00001.parquet")
    for number, text in enumerate(TEXTS):
        (folders[2] / f"file{number}.txt").write_text(text, encoding="utf-8")
    found = [texts_of(load_documents(folder)) for folder in folders]
    assert [len(part) for part in found[0]] == [16, 2, 2]
    assert sorted(itertools.chain(*found[0])) == sorted(TEXTS)
    assert [sorted(part) for part in found[0]] == [sorted(part) for part in found[1]] == [sorted(part) for part in found[2]]


def test_files_and_folders_named_like_parts_are_parts(tmp_path: Path):
    for name, texts in (("train", TEXTS[:10]), ("validation", TEXTS[10:12]), ("test", TEXTS[12:])):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "0.jsonl", texts)
    assert texts_of(load_documents(tmp_path)) == [TEXTS[:10], TEXTS[10:12], TEXTS[12:]]


def test_texts_of_a_later_part_are_left_out_of_earlier_ones(tmp_path: Path):
    for name, texts in (("train", TEXTS[:10]), ("val", TEXTS[9:12]), ("test", TEXTS[11:])):
        write_lines(tmp_path / f"{name}.jsonl", texts)
    splits = load_documents(tmp_path)
    assert texts_of(splits) == [TEXTS[:9], TEXTS[9:11], TEXTS[11:]]
    assert len(splits.left_out) == 2


def test_one_file_is_read_alone_with_another_column_and_equal_texts_stay_together(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", TEXTS[:5] * 2, column="content")
    (tmp_path / "b.txt").write_text("other", encoding="utf-8")
    parts = texts_of(load_documents(tmp_path / "a.jsonl", column="content"))
    assert sorted(itertools.chain(*parts)) == sorted(TEXTS[:5] * 2)
    assert not set(parts[0]) & set(parts[1])
    assert not set(parts[1]) & set(parts[2])


def test_a_single_text_is_cut_at_blank_lines(tmp_path: Path):
    text = "\n\n".join(f"paragraph {number} " + "word " * 100 for number in range(50))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    parts = texts_of(load_documents(tmp_path))
    assert all(parts)
    assert "".join(d.text for d in sections(Document("book", text))) == text
    assert min(len(section) for part in parts for section in part) >= 100


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}', r"line 2: wrong type of `text`"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', r"line 2 has no `text`"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"', r"line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"line 1: `text` is not valid Unicode"),
        ("a.txt", b"caf\xe9", r"a\.txt is not a text file in UTF-8"),
        ("a.parquet", b"PAR1", r"a\.parquet cannot be read as a parquet file"),
        ("a.txt", b"short", r"too little text to divide"),
        ("a.pdf", b"", r"no data in a known format: got none of them"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_documents(tmp_path)


def test_damaged_lines_are_skipped_where_wanted(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", TEXTS)
    with (tmp_path / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"text": 3}\n{"text": "  "}')
    splits = load_documents(tmp_path, on_bad_example="skip")
    assert sorted(itertools.chain(*texts_of(splits))) == sorted(TEXTS)
    assert len(splits.left_out) == 1  # a blank document is no damage


def test_files_of_several_kinds_and_missing_columns_are_errors(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "b.txt").write_text("other", encoding="utf-8")
    with pytest.raises(ValueError, match=r"\.jsonl and \.txt"):
        load_documents(tmp_path)
    parquet.write_table(pyarrow.table({"content": TEXTS}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="column `text`"):
        load_documents(tmp_path / "c.parquet")
    with pytest.raises(FileNotFoundError, match="data_root"):
        load_documents(tmp_path / "none")
