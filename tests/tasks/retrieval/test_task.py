from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from das_gym.data.images import ImageFile
from das_gym.models.checkpoints import load_checkpoint, save_checkpoint
from das_gym.tasks.nlvr2.task import NLVR2Task
from das_gym.tasks.retrieval.captions import NUM_TEXTS, RetrievalExample
from das_gym.tasks.retrieval.task import RetrievalTask, matching_losses
from tests.models import golden_cases as golden


@pytest.fixture
def task() -> RetrievalTask:
    return RetrievalTask(processor=None)  # targets and losses read no image


def example(number: int = 1) -> RetrievalExample:
    own = (f"true {number}", f"also true {number}")
    pool = tuple(f"{word} {n}" for n in range(30) for word in ("true", "also true"))
    return RetrievalExample(str(number), ImageFile(Path(f"{number}.png")), number, own[0], own, (), pool)


def test_pairs_are_16_texts_the_true_one_first(task: RetrievalTask):
    pairs = task.pairs([example(3), example(7)])
    assert len(pairs) == 2 * NUM_TEXTS == 2 * task.passes
    assert [pairs[0].text, pairs[NUM_TEXTS].text] == ["true 3", "true 7"]
    assert [pair.image.key for pair in pairs] == ["3.png"] * NUM_TEXTS + ["7.png"] * NUM_TEXTS
    assert {pair.image_type for pair in pairs} == {1}
    assert "also true 3" not in [pair.text for pair in pairs[:NUM_TEXTS]]


def test_head_scores_each_text(task: RetrievalTask):
    head = task.build_head(2)
    with torch.no_grad():
        head[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
        head[0].bias.fill_(0.5)
    pooled = torch.arange(4.0 * NUM_TEXTS).reshape(-1, 2)  # two examples
    logits = head(task.group_features(pooled))
    assert logits.shape == (2, NUM_TEXTS)
    assert logits[1, 3].item() == pooled[NUM_TEXTS + 3, 0] - 2 * pooled[NUM_TEXTS + 3, 1] + 0.5
    torch.testing.assert_close(head(pooled), logits.flatten())  # as the full ranking uses it


def test_losses_are_cross_entropy_and_metrics_need_a_strict_first(task: RetrievalTask):
    logits = torch.zeros(4, NUM_TEXTS)
    logits[1, 0], logits[2, 5], logits[3] = 2.0, 1.0, math.nan
    targets = task.targets([example(n) for n in range(4)])
    by_hand = [math.log(16), math.log1p(15 * math.exp(-2)), math.log(15 + math.e)]
    assert task.losses(logits, targets)[:3].tolist() == pytest.approx(by_hand)
    assert task.metrics(logits, targets).tolist() == [0.0, 1.0, 0.0, 0.0]  # all equal is not first
    summary = task.summary([example(n) for n in range(2)], np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    assert summary == {"ranked_first": 0.5, "loss": 1.5}


def test_init_head_takes_the_match_row(tmp_path: Path):
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


def test_matching_loss_needs_a_head_and_a_task_with_one(task: RetrievalTask):
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


def test_example_as_text(task: RetrievalTask):
    one = example(3)
    assert (task.question(one), task.reference(one)) == ("Which of 16 texts is true of the image?", "true 3")
    (given,) = task.predictions([one], torch.eye(16)[5:6])
    assert task.format_prediction(one, given) == one.texts[5]
