import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from das_gym.engine import evaluator as engine
from das_gym.engine.caches import Score, ScoreMemory, TrunkMemory
from das_gym.engine.scores import Spending

EVERY = np.array(list(itertools.product((False, True), repeat=12)))
FULL_MODEL = np.zeros((1, 12), dtype=bool)
ONE_EACH = np.eye(12, dtype=bool)

mask_sets = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), max_size=9).flatmap(
    lambda masks: st.permutations(masks + masks[:2])  # some of them twice
)


# ---- exactness


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dtype", "tolerance"), [("METER", torch.float32, 1e-5), ("ViLT", torch.float64, 1e-10)])
@settings(max_examples=8, deadline=None)
@given(bits=mask_sets, batch_size=st.integers(1, 6), divergences=st.booleans())
def test_evaluate_equals_a_plain_forward_per_mask(worlds, model, dtype, tolerance, bits, batch_size, divergences):
    world = worlds[model, dtype]
    masks = np.array(bits, dtype=bool).reshape(-1, 12)
    scores = world.evaluator(batch_size=batch_size).evaluate(masks, world.examples, divergences=divergences)
    losses, metrics, kl = world.plain(masks, world.examples)
    assert scores.losses.shape == (len(masks),)
    np.testing.assert_allclose(scores.losses, losses, atol=tolerance, rtol=0)
    np.testing.assert_allclose(scores.metrics, metrics, atol=1e-6, rtol=0)
    if divergences:
        np.testing.assert_allclose(scores.divergences, kl, atol=tolerance, rtol=0)
    else:
        assert scores.divergences is None


@pytest.mark.slow
@pytest.mark.parametrize("model", ["METER", "ViLT"])
def test_score_of_a_mask_does_not_depend_on_other_masks(worlds, model):
    world = worlds[model, torch.float32]
    masks = np.random.default_rng(1).random((5, 12)) < 0.5
    together = world.evaluator().evaluate(masks, world.examples, divergences=True)
    assert np.diff(np.sort(together.losses)).min() > 1e-5  # each mask matters
    for row, mask in enumerate(masks):
        alone = world.evaluator().evaluate(mask[None], world.examples, divergences=row % 2 == 0)
        assert alone.losses[0] == together.losses[row]
        assert alone.divergences is None or alone.divergences[0] == together.divergences[row]


# ---- spending


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "skip_num", "runs"), [("METER", 4, 1140), ("METER", None, 2730), ("ViLT", 4, 1286), ("ViLT", None, 4095)]
)
def test_spending_counts_the_layer_runs_of_the_tree(worlds, model, skip_num, runs):
    """Each kept layer times the prefixes that lead to it: those with j skips before, as long as the rest fit behind."""
    world = worlds[model, torch.float32]
    masks = EVERY if skip_num is None else EVERY[EVERY.sum(1) == skip_num]
    evaluator = world.evaluator()
    evaluator.losses(masks, world.examples[:1])
    assert evaluator.spent.layer_runs == runs
    assert evaluator.spent.masks == evaluator.spent.examples == len(masks)
    assert (evaluator.spent.texts, evaluator.spent.images) == (1, 1)


def test_shared_adapters_run_once(meter):
    """The text layer of stage 1 is skipped after either image layer of stage 0, and reads the same text."""
    masks = np.zeros((2, 12), dtype=bool)
    masks[:, 1] = True
    masks[1, 6] = True
    evaluator = meter.evaluator()
    evaluator.losses(masks, meter.examples)
    assert evaluator.spent.adapter_runs == 2  # image.0 and text.1
    assert evaluator.spent.layer_runs == 2 * 11 - 1 - 1  # 11 and 10, of which text.0 is shared


def test_masks_start_after_known_front_stages(new_world, monkeypatch):
    """With a front of two stages (layers 0, 6, 1 and 7), masks whose bits there are known run only the stages after it."""
    world, entered = new_world(), []
    monkeypatch.setattr(world.vlp, "front", 2)
    monkeypatch.setattr(world.vlp, "enter_stage", lambda state, stage: (entered.append(stage), (state, 0))[1])
    evaluator = world.evaluator(trunk_bytes=2**30)

    def check(*skipped: tuple[int, ...], layer_runs: int, stages: list[int], divergences: bool = False) -> None:
        masks = np.array([np.isin(range(12), layers) for layers in skipped])
        before, entered[:] = evaluator.spent.layer_runs, []
        scores = evaluator.evaluate(masks, world.examples, divergences=divergences)
        assert (evaluator.spent.layer_runs - before, entered) == (layer_runs, stages)
        losses, _, kl = world.plain(masks, world.examples)
        np.testing.assert_allclose(scores.losses, losses, atol=1e-5)
        if divergences:
            np.testing.assert_allclose(scores.divergences, kl, atol=1e-5)

    after_front = [3, 4, 5]
    # 11 layers each, of which layer 6 is shared.
    check((0,), (7,), layer_runs=2 * 11 - 1, stages=[0, 1, 2, *after_front, 1, 2, *after_front])
    # The full model's layers 0, 1 and 6 are known; the other mask runs 7 of the 8 layers after the front.
    check((0, 11), (), layer_runs=9 + 7, stages=[0, 1, 2, *after_front, *after_front], divergences=True)
    check((7, 10), layer_runs=7, stages=after_front)


def test_blocks_of_other_lengths_share_no_hidden_states(meter):
    """Stages of racing begin at the same example, and may end elsewhere."""
    evaluator = meter.evaluator(trunk_bytes=2**30)
    for stop in (2, len(meter.examples), 3):
        found = evaluator.evaluate_each(ONE_EACH[8:], meter.examples, block=(0, stop))
        wanted = meter.evaluator().evaluate_each(ONE_EACH[8:], meter.examples[:stop])
        np.testing.assert_allclose(found.losses, wanted.losses, atol=1e-5)


def test_blocks_of_examples_score_as_all_of_them_do(meter):
    """The trunk keeps the full model's layers of both blocks: a second mask runs only the layers after its first skip."""
    evaluator = meter.evaluator(trunk_bytes=2**30)
    first, last = np.zeros((2, 1, 12), dtype=bool)
    first[0, 0] = last[0, 5] = True
    whole = meter.evaluator().evaluate_each(first, meter.examples)
    middle, end = len(meter.examples) // 2, len(meter.examples)
    blocks = [evaluator.evaluate_each(first, meter.examples, block=ends) for ends in ((0, middle), (middle, end))]
    for name in ("losses", "metrics"):
        found = np.concatenate([getattr(each, name) for each in blocks], axis=1)
        np.testing.assert_allclose(found, getattr(whole, name), atol=1e-5)
    evaluator.evaluate_each(np.zeros((1, 12), dtype=bool), meter.examples, block=(0, middle))
    evaluator.evaluate_each(np.zeros((1, 12), dtype=bool), meter.examples, block=(middle, end))
    before = evaluator.spent.layer_runs
    evaluator.evaluate_each(last, meter.examples, block=(0, middle))
    assert evaluator.spent.layer_runs - before == 0  # layer 5 and layer 11 share the last stage, and read the full model
    assert evaluator.spent.masks == 3


# ---- caches


def test_scores_are_cached_until_forget(meter):
    evaluator = meter.evaluator()
    first = evaluator.losses(ONE_EACH, meter.examples)
    spent = evaluator.spent
    np.testing.assert_array_equal(evaluator.losses(ONE_EACH[::-1], meter.examples), first[::-1])
    assert evaluator.spent == spent
    evaluator.losses(ONE_EACH, meter.examples[:3])
    assert evaluator.spent.masks == 24
    evaluator.forget()
    np.testing.assert_array_equal(evaluator.losses(ONE_EACH, meter.examples), first)
    assert evaluator.spent.masks == 36
    assert evaluator.spent.texts == spent.texts


@pytest.mark.slow
@pytest.mark.parametrize("part", ["skip adapter", "token types", "head"])
def test_training_invalidates_scores_and_keeps_encoder_outputs(new_world, part):
    world = new_world()
    layer = world.vlp.skippable_layer(3)
    trained = {
        "skip adapter": layer.skip_adapter.up.weight,
        "token types": world.vlp.token_types.weight,
        "head": world.head[-1].weight,
    }[part].requires_grad_()
    evaluator = world.evaluator()
    masks = np.concatenate((FULL_MODEL, ONE_EACH[3:4]))
    before = evaluator.evaluate(masks, world.examples, divergences=True)
    spent = evaluator.spent
    optimiser = torch.optim.AdamW([trained], lr=0.1)
    (trained**2).sum().backward()
    evaluator.evaluate(masks, world.examples, divergences=True)
    assert evaluator.spent.masks == spent.masks  # gradients alone change nothing
    optimiser.step()
    after = evaluator.evaluate(masks, world.examples, divergences=True)
    fresh = world.evaluator().evaluate(masks, world.examples, divergences=True)
    np.testing.assert_array_equal(after.losses, fresh.losses)
    np.testing.assert_array_equal(after.divergences, fresh.divergences)
    assert (after.losses != before.losses).any()
    assert evaluator.spent.texts == spent.texts


def test_memories_stay_within_their_bounds():
    scored = ScoreMemory((), limit=5)
    scores = {(0, bytes([n])): Score(float(n), 0.0, None) for n in range(12)}
    for some in (list(scores)[:4], list(scores)[4:6], list(scores)):
        scored.keep({key: scores[key] for key in some})
        found = scored.find(scores, divergences=False)
        assert len(found) <= 5
        assert found.keys() >= set(some[-5:])
        assert not scored.find(scores, divergences=True)
    trunk = TrunkMemory(max_bytes=100)
    for what in (0, 1, 0):
        assert trunk.get_or_compute((0, 4), what, lambda: torch.zeros(20)).shape == (20,)
    assert (trunk.bytes, trunk.known((0, 4), 1)) == (80, None)
    trunk.start(1)  # other examples
    assert trunk.known((0, 4), 0) is None


def test_logits_of_a_wide_vocabulary_are_not_kept(meter, monkeypatch):
    kept = meter.evaluator()
    kept.evaluate(ONE_EACH[:1], meter.examples, divergences=True)
    monkeypatch.setattr(engine, "MAX_LOGITS_BYTES", 100)
    evaluator = meter.evaluator()
    evaluator.evaluate(ONE_EACH[:1], meter.examples, divergences=True)
    for each in (kept, evaluator):
        each.reset_spent()
    found = evaluator.evaluate(ONE_EACH[1:], meter.examples, divergences=True)
    np.testing.assert_array_equal(
        found.divergences, kept.evaluate(ONE_EACH[1:], meter.examples, divergences=True).divergences
    )
    assert (kept.spent.masks, evaluator.spent.masks) == (11, 12)  # the full model ran again


# ---- broken masks


@pytest.mark.filterwarnings("ignore:the loss of .* is NaN or infinite:RuntimeWarning")
def test_broken_mask_has_infinite_loss_and_affects_no_other(new_world):
    world = new_world()
    with torch.no_grad():
        world.vlp.skippable_layer(3).skip_adapter.up.bias.fill_(float("nan"))
    evaluator = world.evaluator()
    scores = evaluator.evaluate(ONE_EACH, world.examples, divergences=True)
    assert scores.broken.tolist() == [i == 3 for i in range(12)]
    assert (scores.losses[3], scores.metrics[3], scores.divergences[3]) == (np.inf, 0, np.inf)
    others = np.arange(12) != 3
    plain = world.plain(ONE_EACH, world.examples)
    for found, expected in zip((scores.losses, scores.metrics, scores.divergences), plain, strict=True):
        np.testing.assert_allclose(found[others], expected[others], atol=1e-5)
    assert evaluator.spent.broken == 1


@pytest.mark.filterwarnings("ignore:the loss of .* is NaN or infinite:RuntimeWarning")
def test_broken_example_breaks_every_mean_that_it_is_part_of(new_world):
    world = new_world("ViLT")
    ids = world.task.processor.texts(["What?", "How many?"])["input_ids"].tolist()
    word = next(word for word in ids[0] if word not in ids[1])
    with torch.no_grad():
        world.vlp.word_embeddings.weight[word] = float("inf")
    evaluator = world.evaluator(batch_size=2)
    good = [example for example in world.examples if "What" not in example.question]
    assert np.isfinite(evaluator.losses(ONE_EACH, good)).all()
    scores = evaluator.evaluate(ONE_EACH, world.examples, divergences=True)
    assert scores.broken.all()
    assert np.isposinf(scores.divergences).all()
    assert evaluator.spent.broken == 13


def test_broken_full_model_affects_divergences_alone(new_world):
    world = new_world()
    masks = np.ones((1, 12), dtype=bool)
    with torch.no_grad():
        world.vlp.skippable_layer(3).layer.feed_adapter.up.bias.fill_(float("nan"))
    with pytest.warns(RuntimeWarning, match="the full model"):
        scores = world.evaluator().evaluate(masks, world.examples, divergences=True)
    np.testing.assert_allclose(scores.losses, world.plain(masks, world.examples)[0], atol=1e-5)
    assert np.isposinf(scores.divergences).all()
    assert not scores.broken.any()


# ---- interrupts and input


@pytest.mark.slow
def test_interrupt_leaves_earlier_scores_intact(meter):
    def progress(examples: int) -> None:
        done.append(examples)
        if len(done) == 2:
            raise KeyboardInterrupt

    done: list[int] = []
    evaluator = meter.evaluator(batch_size=2)
    known = evaluator.losses(ONE_EACH[:3], meter.examples)
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(ONE_EACH, meter.examples, progress=progress, divergences=True)
    assert done == [2, 2]
    np.testing.assert_array_equal(evaluator.losses(ONE_EACH[:3], meter.examples), known)
    assert evaluator.spent.masks == 3
    found = evaluator.evaluate(ONE_EACH, meter.examples, divergences=True)
    fresh = meter.evaluator(batch_size=2).evaluate(ONE_EACH, meter.examples, divergences=True)
    np.testing.assert_array_equal(found.losses, fresh.losses)
    np.testing.assert_array_equal(found.divergences, fresh.divergences)


@pytest.mark.parametrize("masks", [np.zeros((2, 11)), np.zeros(12), np.full((2, 12), 0.5)])
def test_evaluate_rejects_other_masks_and_takes_none(meter, masks):
    evaluator = meter.evaluator()
    for wrong, examples in ((masks, meter.examples), (FULL_MODEL, ())):
        with pytest.raises(ValueError, match=r"invalid masks|no examples"):
            evaluator.losses(wrong, examples)
    with pytest.raises(TypeError, match="`examples` are not those of a task: got 'abc'"):
        evaluator.losses(FULL_MODEL, ["abc"])
    assert evaluator.evaluate([], meter.examples, divergences=True).divergences.shape == (0,)
    assert evaluator.spent == Spending()
