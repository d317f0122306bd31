from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from das_gym.models.formats import HEADS
from das_gym.models.vilt.checkpoint import VILT_FORMAT
from tests.models import golden_cases as golden


def padded_batch(case: golden.Recorded) -> dict[str, torch.Tensor]:
    return {"image": case.given("image"), "input_ids": case.given("text_ids"), "attention_mask": case.given("text_masks")}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", golden.DTYPES, ids=str)
@pytest.mark.parametrize("part", ["", "pad/"], ids=["one size", "padded"])
@pytest.mark.parametrize("task", ["vqa", "nlvr2", "retrieval"])
def test_numbers_under_every_mask(task, part, dtype):
    case = golden.Recorded("vilt", dtype, part)
    assert len(case.masks) == (3 if part else 20)
    getattr(case, f"check_{task}")()


@pytest.mark.parametrize("which", ["none", "mix"])
def test_hidden_states(which):
    """The reference shuffles patches; the text, and the image's class token, keep their places."""
    case, tensors = golden.Recorded("vilt", torch.float32), golden.tensors("vilt")
    mask = [which == "mix" and i in (1, 4, 7, 10) for i in range(12)]
    with torch.no_grad():
        encoded = case.vlp.encode(padded_batch(case))
        states = golden.run_full(case.vlp, case.vlp.embed(encoded), mask)
        torch.testing.assert_close(case.vlp.pool(states[-1]), case.vlp.forward_encoded(encoded, mask), atol=2e-6, rtol=0)
    text = encoded.hidden["text"].shape[1]
    for depth, state in enumerate(states[1:]):
        expected = tensors[f"tap/{which}/after_{depth}"][:, : text + 1]
        torch.testing.assert_close(state.hidden["joint"][:, : text + 1], expected, atol=2e-5, rtol=1e-5)


def test_patches_keep_raster_order_and_positions_are_stretched():
    case = golden.Recorded("vilt", torch.float32, "pad/")
    expected = golden.tensors("vilt")["pad/tap/none/visual_embed"]
    counts = golden.tensors("vilt")["pad/tap/none/visual_mask"].sum(1).tolist()
    with torch.no_grad():
        hidden, seen = case.vlp.embed_image(case.given("image"))
    assert seen.sum(1).tolist() == counts == [31, 19, 21, 7]
    for row, count in enumerate(counts):
        ours, theirs = hidden[row, :count], expected[row, :count]
        if count < 31:  # smaller images are not shuffled by the reference
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        else:
            distances = torch.cdist(ours.double(), theirs.double()).min(dim=1).values
            assert float(distances.max()) < 1e-4


def test_examples_do_not_depend_on_their_batch():
    case = golden.Recorded("vilt", torch.float64, "pad/")
    batch, sizes = padded_batch(case), golden.metadata("vilt")["pad"]["image_sizes"]
    mask = [i in (2, 9) for i in range(12)]
    with torch.no_grad():
        together = case.vlp(batch, mask)
        reverse = case.vlp({name: tensor.flip(0) for name, tensor in batch.items()}, mask).flip(0)
        torch.testing.assert_close(together, reverse, atol=1e-12, rtol=0)
        for row, (height, width) in enumerate(sizes):
            length = int(batch["attention_mask"][row].sum())
            alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items() if name != "image"}
            alone["image"] = batch["image"][row : row + 1, :, :height, :width]
            torch.testing.assert_close(case.vlp(alone, mask), together[row : row + 1], atol=1e-12, rtol=0)


def test_gradients_reach_what_the_reference_trains():
    recorded = json.loads((golden.GOLDEN / "vilt_grad_norms.json").read_text())
    vlp, head = golden.vqa_gradients("vilt", recorded["skip"])
    found = {name: p.grad for name, p in vlp.named_parameters() if p.grad is not None} | head
    names = {theirs: VILT_FORMAT.our_names(theirs)[0].removeprefix(HEADS) for theirs in recorded["l2"]}
    assert found.keys() == set(names.values())
    for theirs, norm in recorded["l2"].items():
        assert float(found[names[theirs]].norm()) == pytest.approx(norm, rel=1e-4), theirs
    for key, expected in golden.tensors("vilt").items():
        if key.startswith("grad/"):
            name = VILT_FORMAT.our_names(key.removeprefix("grad/"))[0].removeprefix(HEADS)
            torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "irtr"])
def test_trainable_parameters(task):
    vlp = golden.fresh("vilt")
    vlp.freeze()
    ours = {name for name, p in vlp.named_parameters() if p.requires_grad}
    mapped = {VILT_FORMAT.our_names(name)[0] for name in golden.trainable("vilt", task)}
    assert ours == {name for name in mapped if not name.startswith(HEADS)}


def test_pruned_model_has_equal_features():
    vlp, case = golden.fresh("vilt"), golden.Recorded("vilt", torch.float32)
    mask = np.isin(np.arange(12), (1, 4, 7, 10))
    with torch.no_grad():
        before, size = vlp(padded_batch(case), mask), sum(p.numel() for p in vlp.parameters())
        vlp.prune(mask)
        assert torch.equal(before, vlp(padded_batch(case)))
    assert sum(p.numel() for p in vlp.parameters()) < size
    with pytest.raises(ValueError, match=r"this layer was removed by prune\(\)"):
        vlp(padded_batch(case), np.zeros(12, bool))


def test_embed_rejects_inputs_that_do_not_fit():
    vlp = golden.loaded("vilt").vlp
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 64, 60\), expected sides in multiples of 16"):
        vlp.embed_image(torch.ones(1, 3, 64, 60))
    with pytest.raises(ValueError, match="`input_ids` of 25 tokens, expected at most 24"):
        vlp.embed_text(torch.ones(1, 25, dtype=torch.long))
