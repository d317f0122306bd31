"""Retrieval: Karpathy's files and arrow tables, and the task."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from das_gym.data.images import ImageFile
from das_gym.models.checkpoints import load_checkpoint, save_checkpoint
from das_gym.tasks.nlvr2 import NLVR2Task
from das_gym.tasks.retrieval import NUM_TEXTS, RetrievalExample, RetrievalTask, load_captions, matching_losses
from tests.models import golden_cases as golden

SIZES = {"train": 5, "restval": 1, "val": 4, "test": 4}


def entry(imgid: int, split: str, **changes: Any) -> dict[str, Any]:
    sentences = [
        {"raw": f"Caption {n} of image {imgid}.", "tokens": ["caption"], "imgid": imgid, "sentid": 5 * imgid + n}
        for n in range(5)
    ]
    own = {"filename": f"{imgid}.jpg", "split": split, "imgid": imgid, "sentids": [0], "sentences": sentences}
    return {**own, **changes}


def write(root: Path, name: str = "dataset_flickr30k.json", images: str = "flickr30k-images") -> list[dict[str, Any]]:
    """A small data set; returns its entries."""
    splits = [split for split, count in SIZES.items() for _ in range(count)]
    entries = [entry(imgid, split) for imgid, split in enumerate(splits)]
    (root / images).mkdir(parents=True, exist_ok=True)
    for item in entries:
        Image.new("RGB", (20, 12), (0, 0, 15 * item["imgid"])).save(root / images / item["filename"])
    save(root / name, entries)
    return entries


def save(path: Path, entries: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": entries, "dataset": "flickr30k"}), encoding="utf-8")


@pytest.fixture
def root(tmp_path) -> Path:
    write(tmp_path)
    return tmp_path


def change(root: Path, edit: Callable[[list[Any]], Any]) -> Path:
    """Change the entries of the data set in `root`; returns the JSON file."""
    path = root / "dataset_flickr30k.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["images"]
    edit(entries)
    save(path, entries)
    return path


def test_load_captions(root):
    splits = load_captions(root)
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [30, 20, 20]
    assert splits.left_out == ()
    example = splits.reward[7]  # the sixth image after train's five and restval's one is the second of val
    assert (example.key, example.image_id, example.caption) == ("37", 7, "Caption 2 of image 7.")
    assert example.image == ImageFile(root / "flickr30k-images" / "7.jpg")
    assert splits.train[-1].image_id == 5  # restval
    keys = [e.key for part in (splits.train, splits.reward, splits.test) for e in part]
    assert len(set(keys)) == 70


def test_texts_are_one_true_and_15_false_of_the_split(root):
    splits = load_captions(root)
    for part, imgids in ((splits.train, range(6)), (splits.reward, range(6, 10)), (splits.test, range(10, 14))):
        for example in part:
            assert example.texts[0] == example.caption
            assert len(set(example.texts)) == NUM_TEXTS
            others = {f"Caption {n} of image {i}." for i in imgids for n in range(5) if i != example.image_id}
            assert others.issuperset(example.texts[1:])
    assert set(splits.train[0].texts[1:]) != set(splits.train[1].texts[1:])
    assert splits.train[0].texts[1] == "Caption 4 of image 4."  # fixed for ever: files of results rely on it


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("dataset_flickr30k.json", "flickr30k-images"),
        ("karpathy/dataset_flickr30k.json", "flickr30k-images"),
        ("dataset_flickr8k.json", "images"),
        ("dataset_flickr30k.json", ""),
    ],
)
def test_folders_of_images_are_found(tmp_path, name, folder):
    write(tmp_path, name, folder)
    for data_root in (tmp_path, tmp_path / name):
        assert load_captions(data_root).test[0].image.open().size == (20, 12)


@pytest.mark.parametrize("above", ["", "images"])
def test_coco_names_the_folder_of_each_image(tmp_path, above):
    entries = write(tmp_path, "dataset_coco.json", f"{above}/train2014" if above else "train2014")
    for item in entries:
        item.update(filepath="train2014", cocoid=item["imgid"] + 1000)
    save(tmp_path / "dataset_coco.json", entries)
    assert load_captions(tmp_path).test[0].image.open().size == (20, 12)


def test_file_selects_one_of_several_data_sets(root):
    write(root, "karpathy/dataset_coco.json")
    with pytest.raises(ValueError, match=r"several data sets: got dataset_flickr30k\.json, karpathy/dataset_coco\.json"):
        load_captions(root)
    assert len(load_captions(root / "karpathy" / "dataset_coco.json").test) == 20


BAD: list[tuple[Callable[[list[Any]], Any], str]] = [
    (lambda es: es[1].pop("filename"), r"images\[1\].*`filename`"),
    (lambda es: es[1].update(split="dev"), r"images\[1\] \(1\.jpg\).*`split`"),
    (lambda es: es[1].update(imgid=0), r"images\[1\] \(1\.jpg\) repeats `imgid` 0 of .*images\[0\]"),
    (lambda es: es[1].update(filename="0.jpg"), r"images\[1\] \(0\.jpg\) repeats `image` .*0\.jpg"),
    (lambda es: es[1].update(sentences=[]), r"images\[1\] \(1\.jpg\) has no captions"),
    (lambda es: es[1].update(filepath="a\0b"), r"images\[1\].*`filepath`"),
    (lambda es: es[1]["sentences"][2].update(raw=" \n"), r"sentences\[2\]: `raw` is empty"),
    (lambda es: es[1]["sentences"][2].update(hard_negatives="no"), r"sentences\[2\].*`hard_negatives`"),
    (lambda es: es[1]["sentences"][2].update(hard_negatives=["Caption 4 of image 1."]), r"is a caption of the image"),
    (lambda es: es[1]["sentences"][2].update(sentid=0), r"sentences\[2\] repeats `sentid` 0 of .*images\[0\]"),
]


@pytest.mark.parametrize(("edit", "message"), BAD)
def test_bad_entry_is_named_or_skipped(root, edit, message):
    path = change(root, edit)
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        load_captions(root)
    splits = load_captions(root, "skip")
    assert (len(splits.train), len(splits.left_out)) == (25, 1)


def test_too_small_split_names_skipped_entries(root):
    (root / "flickr30k-images" / "12.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"imgid 12: .*12\.jpg does not exist"):
        load_captions(root)
    with pytest.raises(ValueError, match=r"too few captions: got 3 images.*1 entries were skipped.*12\.jpg"):
        load_captions(root, "skip")


def test_empty_split_or_damaged_file_is_named(root):
    path = change(root, lambda entries: [item.update(split="train") for item in entries if item["split"] == "val"])
    with pytest.raises(ValueError, match=r"the reward split\) holds no usable example"):
        load_captions(root)
    path.write_bytes(b'{"images": 3}')
    with pytest.raises(ValueError, match=r"dataset_flickr30k\.json has"):
        load_captions(root)
    with pytest.raises(FileNotFoundError, match=r"has no dataset_flickr30k\.json"):
        load_captions(root / "nowhere")


@pytest.fixture
def task() -> RetrievalTask:
    return RetrievalTask(processor=None)  # targets and losses read no image


def example(number: int = 1) -> RetrievalExample:
    own = (f"true {number}", f"also true {number}")
    pool = tuple(f"{word} {n}" for n in range(30) for word in ("true", "also true"))
    return RetrievalExample(str(number), ImageFile(Path(f"{number}.png")), number, own[0], own, (), pool)


def test_pairs_are_16_texts_the_true_one_first(task):
    pairs = task.pairs([example(3), example(7)])
    assert len(pairs) == 2 * NUM_TEXTS == 2 * task.passes
    assert [pairs[0].text, pairs[NUM_TEXTS].text] == ["true 3", "true 7"]
    assert [pair.image.key for pair in pairs] == ["3.png"] * NUM_TEXTS + ["7.png"] * NUM_TEXTS
    assert {pair.image_type for pair in pairs} == {1}
    assert "also true 3" not in [pair.text for pair in pairs[:NUM_TEXTS]]


def test_head_scores_each_text(task):
    head = task.build_head(2)
    with torch.no_grad():
        head[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
        head[0].bias.fill_(0.5)
    pooled = torch.arange(4.0 * NUM_TEXTS).reshape(-1, 2)  # two examples
    logits = head(task.group_features(pooled))
    assert logits.shape == (2, NUM_TEXTS)
    assert logits[1, 3].item() == pooled[NUM_TEXTS + 3, 0] - 2 * pooled[NUM_TEXTS + 3, 1] + 0.5
    torch.testing.assert_close(head(pooled), logits.flatten())  # as the full ranking uses it


def test_losses_are_cross_entropy_and_metrics_need_a_strict_first(task):
    logits = torch.zeros(4, NUM_TEXTS)
    logits[1, 0], logits[2, 5], logits[3] = 2.0, 1.0, math.nan
    targets = task.targets([example(n) for n in range(4)])
    by_hand = [math.log(16), math.log1p(15 * math.exp(-2)), math.log(15 + math.e)]
    assert task.losses(logits, targets)[:3].tolist() == pytest.approx(by_hand)
    assert task.metrics(logits, targets).tolist() == [0.0, 1.0, 0.0, 0.0]  # all equal is not first
    summary = task.summary([example(n) for n in range(2)], np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    assert summary == {"ranked_first": 0.5, "loss": 1.5}


def test_init_head_takes_the_match_row(tmp_path):
    vlp = golden.loaded("meter").vlp
    task = RetrievalTask(processor=None)
    size = vlp.feature_size
    head = task.build_head(size)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    task.init_head(head, {"vqa_classifier": {"0.weight": torch.ones(size, size)}})
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
    match = {"weight": torch.arange(2.0 * size).reshape(2, size), "bias": torch.tensor([8.0, 9.0])}
    save_checkpoint(tmp_path / "pretrained", vlp, heads={"itm_score": match})  # as pre-training does
    task.init_head(head, load_checkpoint(tmp_path / "pretrained").heads)
    assert torch.equal(head[0].weight, match["weight"][1:])  # row 1 is "match"
    assert head[0].bias.tolist() == [9.0]


def test_matching_loss_weighs_true_and_false_pairs_equally():
    weight, bias = torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([0.5, 0.0])
    pooled = torch.zeros(2 * NUM_TEXTS, 2)
    pooled[0], pooled[NUM_TEXTS + 4] = torch.tensor([2.0, 1.0]), torch.tensor([0.0, -3.0])
    indifferent = math.log1p(math.exp(-0.5))  # -log of the share of "no" in logits (0.5, 0)
    first = (math.log1p(math.exp(0.5 - 1)) + indifferent) / 2  # the true pair's logits are (0.5, 1)
    wrong = math.log1p(math.exp(3 - 0.5))  # one false pair's are (0.5, 3)
    second = (math.log1p(math.exp(0.5)) + (14 * indifferent + wrong) / 15) / 2
    found = matching_losses(pooled, weight, bias)
    assert found.tolist() == pytest.approx([first, second])
    matching = RetrievalTask(processor=None).matching_loss({"itm_score": {"weight": weight, "bias": bias}})
    assert torch.equal(matching(pooled), found)


def test_matching_loss_needs_a_head_and_a_task_with_one(task):
    with pytest.raises(ValueError, match=r"`itm_weight`.*itm_score"):
        task.matching_loss({"rank_output": {}})
    with pytest.raises(ValueError, match=r"nlvr2 has no.*`itm_weight`"):
        NLVR2Task(processor=None).matching_loss({"itm_score": {}})


def test_gallery_has_each_image_once_with_all_captions():
    examples = [
        RetrievalExample(
            f"{number}{k}", ImageFile(Path(f"{number}.png")), number, f"caption {number}{k}", (f"caption {number}0", "same")
        )
        for number in (5, 3)
        for k in (0, 1)
    ]
    found = RetrievalTask.gallery(examples)
    assert [image.key for image in found.images] == ["5.png", "3.png"]
    assert found.texts == ("caption 50", "same", "caption 30", "same")
    assert found.image_of_text.tolist() == [0, 0, 1, 1]
    assert RetrievalTask.gallery(examples, 1).texts == ("caption 50", "same")
    assert len(RetrievalTask.gallery(examples, 3).images) == 2
    with pytest.raises(ValueError, match="`max_images`"):
        RetrievalTask.gallery(examples, 0)


def test_example_as_text(task):
    one = example(3)
    assert (task.question(one), task.reference(one)) == ("Which of 16 texts is true of the image?", "true 3")
    (given,) = task.predictions([one], torch.eye(16)[5:6])
    assert task.format_prediction(one, given) == one.texts[5]
