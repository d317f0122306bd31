from __future__ import annotations

import json

import pytest
import torch

from das_gym.models.formats import HEADS
from das_gym.models.meter.checkpoint import METER_FORMAT
from das_gym.models.meter.model import QuickGELU
from das_gym.models.meter.network import gelu
from tests.models import golden_cases as golden


@pytest.mark.parametrize("dtype", golden.DTYPES, ids=str)
@pytest.mark.parametrize("task", ["vqa", "nlvr2", "retrieval", "matching"])
def test_numbers_under_every_mask(task, dtype):
    case = golden.Recorded("meter", dtype)
    assert len(case.masks) == 24
    getattr(case, f"check_{task}")()


@pytest.mark.parametrize("which", ["none", "mix"])
def test_hidden_states(which):
    case, tensors = golden.Recorded("meter", torch.float32), golden.tensors("meter")
    mask = [which == "mix" and i in (0, 1, 6, 7) for i in range(12)]
    real = case.given("text_masks").bool()
    batch = {"image": case.given("image"), "input_ids": case.given("text_ids"), "attention_mask": case.given("text_masks")}
    with torch.no_grad():
        encoded = case.vlp.encode(batch)
        states = golden.run_full(case.vlp, case.vlp.embed(encoded), mask)
        short = case.vlp.forward_encoded(encoded, mask)
        torch.testing.assert_close(case.vlp.pool(states[-1]), short, atol=2e-6, rtol=0)
    if which == "none":
        text, image = tensors["tap/none/text_transform_out"], tensors["tap/none/image_transform_out"]
        torch.testing.assert_close(encoded.hidden["text"][real], text[real], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoded.hidden["image"], image, atol=1e-5, rtol=1e-5)
    for depth, state in enumerate(states[1:]):
        for stream, rows in (("text", real), ("image", slice(None))):
            expected = tensors[f"tap/{which}/{stream}_after_{depth}"]
            torch.testing.assert_close(state.hidden[stream][rows], expected[rows], atol=2e-5, rtol=1e-5)


def test_gradients_reach_what_the_reference_trains():
    recorded = json.loads((golden.GOLDEN / "meter_grad_norms.json").read_text())
    vlp, head = golden.vqa_gradients("meter", recorded["skip"])
    found = {name: p.grad for name, p in vlp.named_parameters() if p.grad is not None} | head
    names = {theirs: METER_FORMAT.our_names(theirs)[0].removeprefix(HEADS) for theirs in recorded["l2"]}
    assert found.keys() == set(names.values())
    for theirs, norm in recorded["l2"].items():
        assert float(found[names[theirs]].norm()) == pytest.approx(norm, rel=1e-4), theirs
    for key, expected in golden.tensors("meter").items():
        if key.startswith("grad/"):
            name = METER_FORMAT.our_names(key.removeprefix("grad/"))[0].removeprefix(HEADS)
            torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "irtr"])
def test_trainable_parameters(task):
    vlp = golden.fresh("meter")
    vlp.freeze()
    ours = {name for name, p in vlp.named_parameters() if p.requires_grad}
    mapped = {METER_FORMAT.our_names(name)[0] for name in golden.trainable("meter", task)}
    assert ours == {name for name in mapped if not name.startswith(HEADS)}
    assert ours == set(vlp.tunable_state())


def test_text_longer_than_the_positions():
    vlp = golden.loaded("meter").vlp
    longest = vlp.config.max_positions - 2
    ids = torch.full((1, longest + 1), 5)
    with pytest.raises(ValueError, match=f"`input_ids` of {longest + 1} tokens, expected at most {longest}"):
        vlp.encode_text(ids, torch.ones_like(ids))
    with torch.no_grad():
        assert vlp.encode_text(ids[:, 1:], torch.ones_like(ids[:, 1:])).shape[1] == longest


def test_activations_are_those_of_clip_and_overwrite_nothing_that_trains():
    x = torch.randn(3, 50, 5)  # more rows than are taken at once
    kept = x.clone()
    x.requires_grad_()
    pairs = ((QuickGELU(), lambda t: t * torch.sigmoid(1.702 * t)), (gelu, torch.nn.functional.gelu))
    for activation, plain in pairs:
        (ours,) = torch.autograd.grad(activation(x).sum(), x)
        (theirs,) = torch.autograd.grad(plain(x).sum(), x)
        assert torch.equal(ours, theirs)
    assert torch.equal(x.detach(), kept)
    with torch.no_grad():
        for activation, plain in pairs:
            assert torch.equal(activation(x.clone()), plain(x))
