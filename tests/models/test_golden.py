"""METER and ViLT against recorded runs of the reference: numbers under masks, hidden states, gradients, what trains."""

import json

import numpy as np
import pytest
import torch

from das_gym.models.formats import HEADS
from das_gym.models.meter.model import METER_FORMAT, QuickGELU
from das_gym.models.meter.network import gelu
from das_gym.models.vilt.model import VILT_FORMAT
from tests.models import golden_cases as golden

FORMATS = {"meter": METER_FORMAT, "vilt": VILT_FORMAT}
CASES = [("meter", "", task) for task in ("vqa", "nlvr2", "retrieval", "matching")]
VILT = [("vilt", part, task) for part in ("", "pad/") for task in ("vqa", "nlvr2", "retrieval")]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in VILT]

both = pytest.mark.parametrize("name", FORMATS)


def our_name(name: str, theirs: str) -> str:
    """Ours of a parameter or head."""
    return FORMATS[name].our_names(theirs)[0].removeprefix(HEADS)


@pytest.mark.parametrize("dtype", golden.DTYPES, ids=str)
@pytest.mark.parametrize(("name", "part", "task"), CASES)
def test_numbers_under_every_mask(name, part, task, dtype):
    case = golden.Recorded(name, dtype, part)
    assert len(case.masks) == {"meter": 24, "vilt": 3 if part else 20}[name]
    getattr(case, f"check_{task}")()


@pytest.mark.parametrize("which", ["none", "mix"])
@both
def test_hidden_states(name, which):
    """ViLT's reference shuffles patches; the text, and the image's class token, keep their places."""
    case, tensors = golden.Recorded(name, torch.float32), golden.tensors(name)
    skipped = (0, 1, 6, 7) if name == "meter" else (1, 4, 7, 10)
    mask = [which == "mix" and i in skipped for i in range(12)]
    with torch.no_grad():
        encoded = case.vlp.encode(case.batch())
        states = golden.run_full(case.vlp, case.vlp.embed(encoded), mask)
        torch.testing.assert_close(case.vlp.pool(states[-1]), case.vlp.forward_encoded(encoded, mask), atol=2e-6, rtol=0)
    real, text = case.given("text_masks").bool(), encoded.hidden["text"].shape[1]
    if name == "meter" and which == "none":
        for stream, rows in (("text", real), ("image", slice(None))):
            expected = tensors[f"tap/none/{stream}_transform_out"]
            torch.testing.assert_close(encoded.hidden[stream][rows], expected[rows], atol=1e-5, rtol=1e-5)
    pairs = {"text": real, "image": slice(None)} if name == "meter" else {"joint": (slice(None), slice(text + 1))}
    for depth, state in enumerate(states[1:]):
        for stream, rows in pairs.items():
            expected = tensors[f"tap/{which}/{'' if stream == 'joint' else f'{stream}_'}after_{depth}"]
            torch.testing.assert_close(state.hidden[stream][rows], expected[rows], atol=2e-5, rtol=1e-5)


@both
def test_gradients_reach_what_the_reference_trains(name):
    recorded = json.loads((golden.GOLDEN / f"{name}_grad_norms.json").read_text())
    vlp, head = golden.vqa_gradients(name, recorded["skip"])
    found = {key: p.grad for key, p in vlp.named_parameters() if p.grad is not None} | head
    assert found.keys() == {our_name(name, theirs) for theirs in recorded["l2"]}
    for theirs, norm in recorded["l2"].items():
        assert float(found[our_name(name, theirs)].norm()) == pytest.approx(norm, rel=1e-4), theirs
    for key, expected in golden.tensors(name).items():
        if key.startswith("grad/"):
            torch.testing.assert_close(found[our_name(name, key.removeprefix("grad/"))], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "irtr"])
@both
def test_trainable_parameters(name, task):
    vlp = golden.fresh(name)
    vlp.freeze()
    ours = {key for key, p in vlp.named_parameters() if p.requires_grad}
    mapped = {FORMATS[name].our_names(theirs)[0] for theirs in golden.trainable(name, task)}
    assert ours == {key for key in mapped if not key.startswith(HEADS)} == set(vlp.tunable_state())


@both
def test_pruned_model_has_equal_features(name):
    vlp, batch = golden.fresh(name), golden.Recorded(name, torch.float32).batch()
    mask = np.isin(np.arange(12), (1, 4, 7, 10))
    with torch.no_grad():
        before, size = vlp(batch, mask), sum(p.numel() for p in vlp.parameters())
        vlp.prune(mask)
        assert torch.equal(before, vlp(batch))
    assert sum(p.numel() for p in vlp.parameters()) < size
    with pytest.raises(ValueError, match=r"prune\(\)"):
        vlp(batch, np.zeros(12, bool))


def test_inputs_that_do_not_fit_are_rejected():
    meter, vilt = (golden.loaded(name).vlp for name in FORMATS)
    longest = meter.config.max_positions - 2
    ids = torch.full((1, longest + 1), 5)
    with pytest.raises(ValueError, match="`input_ids`"):
        meter.encode_text(ids, torch.ones_like(ids))
    with torch.no_grad():
        assert meter.encode_text(ids[:, 1:], torch.ones_like(ids[:, 1:])).shape[1] == longest
    with pytest.raises(ValueError, match=r"\(1, 3, 64, 60\)"):
        vilt.embed_image(torch.ones(1, 3, 64, 60))
    with pytest.raises(ValueError, match="`input_ids`"):
        vilt.embed_text(torch.ones(1, 25, dtype=torch.long))


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
    batch, sizes = case.batch(), golden.metadata("vilt")["pad"]["image_sizes"]
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
