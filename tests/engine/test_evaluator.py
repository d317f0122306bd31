from __future__ import annotations

import itertools
from collections.abc import Callable
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from das_gym.models.base import VLP

EVERY = np.array(list(itertools.product((False, True), repeat=12)))
UNSKIPPED = np.zeros((1, 12), dtype=bool)
ONE_EACH = np.eye(12, dtype=bool)

mask_sets = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), max_size=9).flatmap(
    lambda masks: st.permutations(masks + masks[:2])  # some of them twice
)


class TestExact:
    @pytest.mark.slow
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
    @pytest.mark.parametrize("model", ["METER", "ViLT"])
    @settings(max_examples=8, deadline=None)
    @given(bits=mask_sets, batch_size=st.integers(1, 6), divergences=st.booleans())
    def test_equal_to_a_plain_forward_per_mask(self, worlds, model, dtype, tolerance, bits, batch_size, divergences):
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
    def test_masks_differ_and_so_do_examples(self, worlds, model):
        """Or else the test above would compare nothing."""
        world = worlds[model, torch.float32]
        found = [world.evaluator().losses(ONE_EACH, [example]) for example in world.examples]
        assert np.std(found, axis=0).min() > 1e-3
        assert np.diff(np.sort(world.evaluator().losses(ONE_EACH, world.examples))).min() > 1e-5
        batch = world.task.processor(world.task.pairs(world.examples))
        assert len(set(batch["attention_mask"].sum(1).tolist())) == 3
        if model == "ViLT":
            assert len({world.task.processor.image(example.image).shape for example in world.examples}) == 3
            assert batch["image"].shape[-2:] == (48, 48)

    @pytest.mark.slow
    @pytest.mark.parametrize("model", ["METER", "ViLT"])
    def test_a_mask_scores_the_same_bits_alone_and_in_company(self, worlds, model):
        world = worlds[model, torch.float32]
        masks = np.random.default_rng(1).random((5, 12)) < 0.5
        together = world.evaluator().evaluate(masks, world.examples, divergences=True)
        for row, mask in enumerate(masks):
            alone = world.evaluator().evaluate(mask[None], world.examples, divergences=row % 2 == 0)
            assert alone.losses[0] == together.losses[row]
            assert alone.divergences is None or alone.divergences[0] == together.divergences[row]


def tree_runs(vlp: VLP, skip_num: int | None) -> int:
    """Kept layers times the prefixes that lead to them: with j of the layers before the stage skipped, and this one
    kept, what is still to skip must fit into what is left."""
    runs = 0
    before = 0
    for stage in vlp.stages:
        left = len(vlp.layers) - before - 1
        for skipped in range(before + 1):
            if skip_num is None or 0 <= skip_num - skipped <= left:
                runs += len(stage) * comb(before, skipped)
        before += len(stage)
    return runs


class TestSpending:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("model", "skip_num", "runs"), [("METER", 4, 1140), ("METER", None, 2730), ("ViLT", 4, 1286), ("ViLT", None, 4095)]
    )
    def test_layer_runs_are_the_trees(self, worlds, model, skip_num, runs):
        world = worlds[model, torch.float32]
        masks = EVERY if skip_num is None else EVERY[EVERY.sum(1) == skip_num]
        evaluator = world.evaluator()
        evaluator.losses(masks, world.examples[:1])
        assert evaluator.spent.layer_runs == runs == tree_runs(world.vlp, skip_num)
        assert evaluator.spent.masks == evaluator.spent.examples == len(masks)
        assert (evaluator.spent.texts, evaluator.spent.images) == (1, 1)

    @pytest.mark.slow
    def test_each_batch_runs_the_tree(self, meter):
        evaluator = meter.evaluator(batch_size=4)
        evaluator.losses(np.concatenate((UNSKIPPED, UNSKIPPED)), meter.examples)
        spent = evaluator.spent
        assert (spent.layer_runs, spent.adapter_runs, spent.masks, spent.examples) == (24, 0, 1, 6)
        assert spent.seconds > 0

    def test_shared_adapters_run_once(self, meter):
        """The text layer of stage 1 is skipped after either image layer of stage 0, and reads the same text."""
        masks = np.zeros((2, 12), dtype=bool)
        masks[:, 1] = True
        masks[1, 6] = True
        evaluator = meter.evaluator()
        evaluator.losses(masks, meter.examples)
        assert evaluator.spent.adapter_runs == 2  # image.0 and text.1
        assert evaluator.spent.layer_runs == 2 * 11 - 1 - 1  # 11 and 10, of which text.0 is shared

    def test_reading_and_resetting(self, meter):
        evaluator = meter.evaluator()
        evaluator.evaluate(ONE_EACH[:2], meter.examples, divergences=True)
        before = evaluator.spent
        assert before.as_dict()["masks"] == 3  # with the unskipped one
        evaluator.losses(ONE_EACH, meter.examples)
        assert (before.masks, evaluator.spent.masks) == (3, 13)
        evaluator.reset_spent()
        assert set(evaluator.spent.as_dict().values()) == {0}


class TestMemory:
    @pytest.mark.slow
    def test_remembers_until_told_to_forget(self, meter):
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

    def test_is_bounded(self, meter):
        evaluator = meter.evaluator(remember=5)
        whole = evaluator.losses(ONE_EACH, meter.examples)
        np.testing.assert_array_equal(evaluator.losses(ONE_EACH, meter.examples), whole)
        assert 12 < evaluator.spent.masks <= 24
        evaluator.losses(ONE_EACH[:3], meter.examples)
        masks = evaluator.spent.masks
        evaluator.losses(ONE_EACH[:3], meter.examples)
        assert evaluator.spent.masks == masks

    @pytest.mark.slow
    @pytest.mark.parametrize("part", ["skip adapter", "parallel adapter", "pooler", "token types", "head"])
    def test_training_forgets_scores_and_keeps_encoder_outputs(self, new_world, part):
        world = new_world()
        layer = world.vlp.skippable(3)
        trained = {
            "skip adapter": layer.skip_adapter.up.weight,
            "parallel adapter": layer.layer.feed_adapter.down.bias,
            "pooler": world.vlp.text_pooler.weight,
            "token types": world.vlp.token_types.weight,
            "head": world.head[-1].weight,
        }[part].requires_grad_()
        evaluator = world.evaluator()
        masks = np.concatenate((UNSKIPPED, ONE_EACH[3:4]))
        before = evaluator.evaluate(masks, world.examples, divergences=True)
        texts = evaluator.spent.texts
        optimiser = torch.optim.AdamW([trained], lr=0.1)
        (trained**2).sum().backward()
        optimiser.step()
        after = evaluator.evaluate(masks, world.examples, divergences=True)
        fresh = world.evaluator().evaluate(masks, world.examples, divergences=True)
        np.testing.assert_array_equal(after.losses, fresh.losses)
        np.testing.assert_array_equal(after.divergences, fresh.divergences)
        assert (after.losses != before.losses).any()
        assert evaluator.spent.texts == texts

    def test_loading_an_adaptation_forgets(self, new_world):
        world = new_world()
        evaluator = world.evaluator()
        before = evaluator.losses(ONE_EACH, world.examples)
        world.head.load_state_dict({name: tensor + 1 for name, tensor in world.head.state_dict().items()})
        assert (evaluator.losses(ONE_EACH, world.examples) != before).all()

    def test_a_backward_pass_alone_forgets_nothing(self, new_world):
        world = new_world()
        world.head.requires_grad_()
        evaluator = world.evaluator()
        evaluator.losses(ONE_EACH, world.examples)
        sum((parameter**2).sum() for parameter in world.head.parameters()).backward()
        evaluator.losses(ONE_EACH, world.examples)
        assert evaluator.spent.masks == 12

    def test_encoder_outputs_are_bounded(self, meter):
        evaluator = meter.evaluator(cache_bytes=1)
        once = evaluator.losses(UNSKIPPED, meter.examples)
        texts = evaluator.spent.texts
        evaluator.forget()
        np.testing.assert_array_equal(evaluator.losses(UNSKIPPED, meter.examples), once)
        assert evaluator.spent.texts == 2 * texts


class TestDivergences:
    @pytest.mark.slow
    def test_the_full_model_runs_once(self, meter):
        evaluator = meter.evaluator(batch_size=4)
        evaluator.evaluate(ONE_EACH[:2], meter.examples, divergences=True)
        assert evaluator.spent.masks == 3
        found = evaluator.evaluate(np.concatenate((ONE_EACH[1:5], UNSKIPPED)), meter.examples, divergences=True)
        assert evaluator.spent.masks == 6
        assert found.divergences[-1] == 0
        assert (found.divergences[:-1] > 0).all()

    def test_asked_for_later(self, meter):
        evaluator = meter.evaluator()
        losses = evaluator.losses(ONE_EACH, meter.examples)
        found = evaluator.evaluate(ONE_EACH, meter.examples, divergences=True)
        np.testing.assert_array_equal(found.losses, losses)
        np.testing.assert_allclose(found.divergences, meter.plain(ONE_EACH, meter.examples)[2], atol=1e-5)
        assert evaluator.evaluate(ONE_EACH, meter.examples).divergences is None

    def test_no_masks(self, meter):
        evaluator = meter.evaluator()
        assert evaluator.evaluate(UNSKIPPED[:0], meter.examples, divergences=True).divergences.shape == (0,)
        assert evaluator.spent.masks == 0

    def test_another_batch_size_runs_it_again(self, meter):
        evaluator = meter.evaluator()
        evaluator.evaluate(ONE_EACH[:1], meter.examples, divergences=True)
        evaluator.batch_size = 2
        found = evaluator.evaluate(ONE_EACH[1:2], meter.examples, divergences=True)
        np.testing.assert_allclose(found.divergences, meter.plain(ONE_EACH[1:2], meter.examples)[2], atol=1e-5)
        assert evaluator.spent.masks == 4


@pytest.mark.filterwarnings("ignore:the loss of .* is NaN or infinite:RuntimeWarning")
class TestBroken:
    def test_a_broken_loss_counts_as_infinite_and_spoils_no_other(self, new_world):
        world = new_world()
        with torch.no_grad():
            world.vlp.skippable(3).skip_adapter.up.bias.fill_(float("nan"))
        evaluator = world.evaluator()
        scores = evaluator.evaluate(ONE_EACH, world.examples, divergences=True)
        assert scores.broken.tolist() == [i == 3 for i in range(12)]
        assert (scores.losses[3], scores.metrics[3], scores.divergences[3]) == (np.inf, 0, np.inf)
        others = np.arange(12) != 3
        for found, plain in zip(
            (scores.losses, scores.metrics, scores.divergences), world.plain(ONE_EACH, world.examples), strict=True
        ):
            np.testing.assert_allclose(found[others], plain[others], atol=1e-5)
        assert evaluator.spent.broken == 1

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_one_broken_example_breaks_what_it_is_in(self, new_world, value):
        world = new_world("ViLT")
        ids = world.task.processor.texts(["What?", "How many?"])["input_ids"].tolist()
        word = next(word for word in ids[0] if word not in ids[1])
        with torch.no_grad():
            world.vlp.word_embeddings.weight[word] = value
        evaluator = world.evaluator(batch_size=2)
        whole = [example for example in world.examples if "What" not in example.question]
        assert np.isfinite(evaluator.losses(ONE_EACH, whole)).all()
        scores = evaluator.evaluate(ONE_EACH, world.examples, divergences=True)
        assert scores.broken.all()
        assert np.isposinf(scores.divergences).all()
        assert evaluator.spent.broken == 13

    def test_a_broken_full_model_leaves_losses_alone(self, new_world):
        world = new_world()
        masks = np.ones((1, 12), dtype=bool)
        with torch.no_grad():
            world.vlp.skippable(3).layer.feed_adapter.up.bias.fill_(float("nan"))
        scores = world.evaluator().evaluate(masks, world.examples, divergences=True)
        np.testing.assert_allclose(scores.losses, world.plain(masks, world.examples)[0], atol=1e-5)
        assert np.isposinf(scores.divergences).all()
        assert not scores.broken.any()


def interrupt_after(batches: int, error: type[BaseException]) -> Callable[[int], None]:
    done = iter(range(batches))

    def progress(examples: int) -> None:
        if next(done, None) is None:
            raise error

    return progress


class TestInterrupts:
    @pytest.mark.slow
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_what_was_scored_before_stays_right(self, meter, error):
        evaluator = meter.evaluator(batch_size=2)
        known = evaluator.losses(ONE_EACH[:3], meter.examples)
        with pytest.raises(error):
            evaluator.evaluate(ONE_EACH, meter.examples, progress=interrupt_after(1, error), divergences=True)
        assert evaluator.spent.masks == 3
        np.testing.assert_array_equal(evaluator.losses(ONE_EACH[:3], meter.examples), known)
        assert evaluator.spent.masks == 3
        found = evaluator.evaluate(ONE_EACH, meter.examples, divergences=True)
        fresh = meter.evaluator(batch_size=2).evaluate(ONE_EACH, meter.examples, divergences=True)
        np.testing.assert_array_equal(found.losses, fresh.losses)
        np.testing.assert_array_equal(found.divergences, fresh.divergences)

    def test_progress_tells_of_every_example(self, meter):
        done = []
        meter.evaluator(batch_size=4).evaluate(UNSKIPPED, meter.examples, progress=done.append)
        assert done == [4, 2]


class TestInput:
    @pytest.mark.parametrize("masks", [np.zeros((2, 11)), np.zeros(12), np.zeros((1, 2, 12)), np.zeros((0, 3))])
    def test_masks_of_another_shape(self, meter, masks):
        with pytest.raises(ValueError, match=r"give \(number of masks, 12\)"):
            meter.evaluator().losses(masks, meter.examples)

    @pytest.mark.parametrize("value", [2, -1, 0.5, float("nan")])
    def test_masks_of_other_values(self, meter, value):
        masks = np.zeros((2, 12))
        masks[1, 3] = value
        with pytest.raises(ValueError, match=r"other values than 0 \(keep\) and 1 \(skip\)"):
            meter.evaluator().losses(masks, meter.examples)

    def test_no_examples(self, meter):
        with pytest.raises(ValueError, match="no examples"):
            meter.evaluator().losses(UNSKIPPED, ())

    @pytest.mark.parametrize("masks", [np.zeros((0, 12)), []], ids=["array", "list"])
    def test_no_masks(self, meter, masks):
        evaluator = meter.evaluator()
        assert evaluator.losses(masks, meter.examples).shape == (0,)
        assert evaluator.spent.as_dict() == meter.evaluator().spent.as_dict()

    def test_numbers_for_truth_values(self, meter):
        evaluator = meter.evaluator()
        wanted = evaluator.losses(ONE_EACH, meter.examples)
        np.testing.assert_array_equal(evaluator.losses(ONE_EACH.astype(int).tolist(), meter.examples), wanted)
        assert evaluator.spent.masks == 12
