"""NLVR2: its files, and its task."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from das_gym.data.images import ImageFile
from das_gym.tasks.base import Task
from das_gym.tasks.nlvr2 import NLVR2Example, NLVR2Task, load_nlvr2, reward_buckets
from tests.tasks.answering.making import draw, write_lines

Entry = dict[str, Any]
DIRECTORIES = (0, 7, 12)


def change(path: Path, line: int, edit: Callable[[Entry], object]) -> None:
    """Edit one entry; lines count from 1."""
    rows = path.read_text(encoding="utf-8").splitlines()
    entry = json.loads(rows[line - 1])
    edit(entry)
    rows[line - 1] = json.dumps(entry)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def entry(identifier: str, label: str, **more: Any) -> Entry:
    """An official entry, with unused keys."""
    return {"sentence": f"About {identifier[-3:]}.", "label": label, "identifier": identifier, "synset": "owl", **more}


@pytest.fixture
def root(tmp_path) -> Path:
    """Two sets in each directory of train and in test1, with two pairs and two sentences each; a dev split besides."""
    folder = tmp_path / "nlvr2"
    train = [
        entry(f"train-{number}-{pair}-{s}", str((pair + s) % 2 == 0), directory=directory)
        for number, directory in enumerate(sorted((*DIRECTORIES, *DIRECTORIES)))
        for pair in (0, 1)
        for s in (0, 1)
    ]
    write_lines(folder / "train.json", train)
    for row in train:
        for side in (0, 1):
            draw(folder / "images" / "train" / str(row["directory"]) / f"{row['identifier'][:-2]}-img{side}.png")
    for split in ("dev", "test1"):
        write_lines(folder / f"{split}.json", [entry(f"{split}-{n}-0-0", str(n == 1)) for n in (1, 2)])
        for n, side in ((1, 0), (1, 1), (2, 0), (2, 1)):
            draw(folder / split / f"{split}-{n}-0-img{side}.png")
    return folder


def test_examples_are_in_the_order_of_the_file(root):
    (root / "test1.json").unlink()  # then dev is the test split
    first, second = load_nlvr2(root).test
    assert (first.identifier, first.sentence, first.label) == ("dev-1-0-0", "About 0-0.", True)
    assert first.images == tuple(ImageFile(root / "dev" / f"dev-1-0-img{side}.png") for side in (0, 1))
    assert (second.key, second.label) == ("dev-2-0-0", False)
    assert all(image.open().size == (6, 4) for image in second.images)


def test_whole_directories_are_the_reward_split(root):
    splits = load_nlvr2(str(root))
    chosen = reward_buckets(map(str, DIRECTORIES))
    directories = {
        part: {Path(image.key).parent.name for example in getattr(splits, part) for image in example.images}
        for part in ("train", "reward")
    }
    assert directories == {"train": set(map(str, DIRECTORIES)) - chosen, "reward": chosen}
    assert (len(splits.train), len(splits.reward), len(splits.test), splits.left_out) == (16, 8, 2, ())
    of_a_set = sorted(e.set_id for e in (*splits.train, *splits.reward) if e.identifier.startswith("train-3-"))
    assert of_a_set == ["train-3-0", "train-3-0", "train-3-1", "train-3-1"]


@pytest.mark.parametrize("folder", ["data", "nlvr2/data", "nlvr/nlvr2/data"])
def test_official_folders_are_found(root, folder):
    (root / folder).mkdir(parents=True)
    for path in root.glob("*.json"):
        path.rename(root / folder / path.name)
    (root / "images" / "train").rename(root / "train")
    (root / "test1").rename(root / "images" / "test1")
    splits = load_nlvr2(root)
    assert Path(splits.train[0].images[0].key).parent.parent == root / "train"
    assert Path(splits.test[0].images[0].key).parent == root / "images" / "test1"


BAD_ENTRIES: list[tuple[dict[str, Any], str]] = [
    *(({name: None}, f"`{name}`") for name in ("sentence", "label", "identifier", "directory")),
    ({"label": "true"}, "`label`"),
    ({"sentence": " \n"}, "`sentence` is empty"),
    ({"sentence": "a \ud83d b"}, "`sentence` is not valid Unicode"),
    ({"identifier": "train-0-0-1"}, "repeats `identifier`"),
    *(({"identifier": name}, "`identifier`") for name in ("dev-0-0-0", "train-../x-0-0", "train-²-0-0")),
    *(({"directory": name}, "`directory`") for name in ("..", "a\\b")),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ENTRIES)
def test_bad_entry_is_named_or_skipped(root, changes, message):
    change(root / "train.json", 3, lambda e: e.update(changes))
    with pytest.raises(ValueError, match=rf"train\.json: line 3.*{message}"):
        load_nlvr2(root)
    splits = load_nlvr2(root, "skip")
    assert (len(splits.train) + len(splits.reward), len(splits.left_out)) == (23, 1)


@pytest.mark.parametrize("names", [("train",), ("test1", "dev")])
def test_missing_file_is_named(root, names):
    for name in names:
        (root / f"{name}.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no {names[0]}\.json"):
        load_nlvr2(root)
    with pytest.raises(FileNotFoundError, match="`data_root` is not a folder"):
        load_nlvr2(root / "nowhere")


@pytest.fixture
def task() -> NLVR2Task:
    return NLVR2Task(processor=None)  # targets and losses read no image


def example(identifier: str = "dev-1-0-0", label: bool = True) -> NLVR2Example:
    return NLVR2Example(identifier, "there is 1 owl.", (ImageFile(Path("a.png")), ImageFile(Path("b.png"))), label)


def test_head_reads_concatenated_features(task):
    pooled = torch.arange(12.0).reshape(4, 3)
    assert task.group_features(pooled).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert task.build_head(3)(task.group_features(pooled)).shape == (2, 2)


def test_losses_are_cross_entropy_and_metrics_accuracy(task):
    targets = task.targets([example(label=True), example(label=False), example(label=False)])
    logits = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 1.0]])
    by_hand = [math.log1p(math.exp(-2)), math.log1p(math.exp(1)), math.log1p(math.exp(-2))]
    assert task.losses(logits, targets).tolist() == pytest.approx(by_hand)
    assert task.metrics(logits, targets).tolist() == [1.0, 0.0, 1.0]


def test_consistency_needs_every_pair_of_a_sentence(task):
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-2-0-0", "dev-2-1-0", "dev-2-2-0"]
    metrics = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])  # dev-1-0 is wrong once, dev-1-1 and dev-2-0 never
    found = task.summary([example(name) for name in names], np.full(6, 0.25), metrics)
    assert found == pytest.approx({"accuracy": 5 / 6, "loss": 0.25, "consistency": 2 / 3})


def test_example_as_text(task):
    one = example(label=False)
    assert (task.question(one), task.reference(one)) == ("there is 1 owl.", "False")
    (given,) = task.predictions([one], torch.tensor([[0.0, 1.0]]))
    assert task.format_prediction(one, given) == "True"
    assert [Task.format_prediction(task, one, {"prediction": n}) for n in (0, 7, None)] == [
        "False",
        "7",
        "",
    ]  # of a task without words
