"""SNLI-VE: its files, and its task."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from PIL import Image

from das_gym.data.images import ImageFile
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, load_problem, new_head
from das_gym.shapes.snli_ve import write_shapes_snli_ve
from das_gym.tasks.snli_ve import LABELS, SNLIVEExample, SNLIVETask, load_snli_ve

Entry = dict[str, Any]


def entry(image: str, number: int, label: str) -> Entry:
    """An official entry, with unused keys."""
    return {
        "annotator_labels": [label],
        "captionID": f"{image}.jpg#0",
        "gold_label": label,
        "pairID": f"{image}.jpg#0r{number}",
        "sentence1": "A heron.",
        "sentence2": f"{label} of {image}. ",
        "Flickr30K_ID": image,
    }


def write(root: Path, images: str = "flickr30k_images", above: str = "") -> Path:
    """Two images with four pairs each in train, of which one is undecided, one image in dev and in test."""
    (root / images).mkdir(parents=True)
    (root / above).mkdir(exist_ok=True)
    for part, names in {"train": ("11", "12"), "dev": ("21",), "test": ("31",)}.items():
        rows = [entry(name, n, label) for name in names for n, label in enumerate((*LABELS[::-1], "-"))]
        (root / above / f"snli_ve_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in names:
            Image.new("RGB", (12, 8), (int(name), 90, 30)).save(root / images / f"{name}.jpg")
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return write(tmp_path / "data")


def change(path: Path, edit: Callable[[Entry], object]) -> None:
    """Edit the second entry of a file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows[1])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_load_snli_ve_leaves_out_undecided_pairs(root):
    splits = load_snli_ve(root)
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [6, 3, 3]
    assert [LABELS[example.label] for example in splits.reward] == ["entailment", "neutral", "contradiction"]
    first = splits.train[0]
    assert (first.key, first.hypothesis) == ("11.jpg#0r0", "entailment of 11.")
    assert first.image == ImageFile(root / "flickr30k_images" / "11.jpg")
    assert first.image is splits.train[2].image
    assert first.image.open().size == (12, 8)


@pytest.mark.parametrize(
    ("images", "above"), [("flickr30k-images", ""), ("Flickr30K/images", ""), ("images", "data"), ("", "data")]
)
def test_folders_of_images_are_found(tmp_path, images, above):
    splits = load_snli_ve(write(tmp_path / "root", images, above))
    assert splits.test[0].image.open().size == (12, 8)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda e: e.pop("sentence2"), r"line 2 has no `sentence2`"),
        (lambda e: e.update(Flickr30K_ID="../21"), r"line 2: wrong `Flickr30K_ID`"),
        (lambda e: e.update(sentence2=" "), r"line 2: `sentence2` is empty"),
        (lambda e: e.update(gold_label="yes"), r"line 2: wrong `gold_label`"),
        (lambda e: e.update(pairID="11.jpg#0r0"), r"repeats `pairID` 11.jpg#0r0 of .*train\.jsonl: line 1"),
    ],
)
def test_bad_entry_is_named_or_skipped(root, edit, text):
    change(root / "snli_ve_dev.jsonl", edit)
    with pytest.raises(ValueError, match=text):
        load_snli_ve(root)
    splits = load_snli_ve(root, "skip")
    assert (len(splits.reward), len(splits.left_out)) == (2, 1)


@pytest.fixture
def task() -> SNLIVETask:
    return SNLIVETask(processor=None)  # targets and losses read no image


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    return write_shapes_snli_ve(tmp_path_factory.mktemp("data") / "snli", scenes={"train": 2, "dev": 2, "test": 2})


def example(number: int, label: str) -> SNLIVEExample:
    return SNLIVEExample(f"{number}.jpg#0r0", f"hypothesis {number}", ImageFile(Path(f"{number}.png")), LABELS.index(label))


def test_loss_metric_and_predictions_by_hand(task):
    examples = [example(0, "entailment"), example(1, "neutral"), example(2, "contradiction")]
    assert [(pair.text, pair.image.key) for pair in task.pairs(examples[:1])] == [("hypothesis 0", "0.png")]
    targets = task.targets(examples)
    logits = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    by_hand = [math.log1p(2 * math.exp(-2)), math.log(2 + math.e), math.log(3)]
    assert task.losses(logits, targets).tolist() == pytest.approx(by_hand)
    assert task.metrics(logits, targets)[:2].tolist() == [1.0, 0.0]
    assert task.predictions(examples[:2], logits[:2]) == [
        {"pairID": "0.jpg#0r0", "prediction": "entailment"},
        {"pairID": "1.jpg#0r0", "prediction": "contradiction"},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["METER", "ViLT"])
def test_environment_requires_a_supernet(model, data_root, tmp_path):
    config = ProblemConfig(model=model, task="snli_ve", data_root=str(data_root))
    advice = f"train one with `das-adapt supernet with {model.lower()}_snli_ve '?data_root="
    with pytest.raises(ValueError, match=advice):
        load_problem(config)
    backbone = load_backbone(config)
    task = SNLIVETask(backbone.processor)
    head = new_head(backbone, task)
    assert len(head[3].weight) == len(LABELS)
    path = tmp_path / "supernet.safetensors"
    AdaptedModel(backbone, head, task).adaptation(kind="supernet").save(path)
    assert Adaptation.load(path).task == "snli_ve"
    env = gymnasium.make(f"DAS-{model}-SNLI-VE-v0", data_root=str(data_root), supernet=str(path), skip_num=4)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step([1] * 4 + [0] * 8)
    assert terminated
    assert reward == pytest.approx(math.exp(-info["loss"]))
