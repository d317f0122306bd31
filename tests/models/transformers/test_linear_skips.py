"""Linear skip adapters: the fit against own ridge regression, masks against the model's own forward."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.shrinking.saving import save
from torch import Tensor, nn

from das_gym.models.transformers.inserted_adapters import copy_with_linear_skips, full_model_with_adapters
from das_gym.models.transformers.linear_skips import STRENGTHS, fit_ridge, fit_skip_adapters
from das_gym.models.transformers.stack import as_layer_output, first_input, first_output, replace_forwards
from tests.models.transformers import tiny
from tests.models.transformers.conftest import Driven, copied
from tests.models.transformers.test_engine import evaluator_of, examples_by_round
from tests.models.transformers.test_sublayer_removal import load


def states_of(model: Driven, batches: int = 8) -> list[Any]:
    """The states before the first unit, one prompt a batch."""
    prompts = (model.prompts() * 2)[:batches]
    return [model.vlm.embed(model.vlm.gather_uncached(model.processor, [prompt])) for prompt in prompts]


def fitted(model: Driven, **settings: Any) -> Driven:
    """Return a copy of a model with fitted skip adapters."""
    model = copied(model)
    fit_skip_adapters(model.vlm, states_of(model), **settings)
    return model


def plain_forward(unit: Any, module: Any, is_layer: bool) -> Callable[..., Any]:
    """The forward that replaces a skipped unit in the model's own forward, from the adapter's weights alone."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = first_input(args, kwargs)
        if isinstance(unit, nn.Identity):  # the map of the last layer of a run replaces this one, too
            return as_layer_output(module, x)
        read = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() if is_layer else x
        return as_layer_output(module, (x if is_layer else 0) + read @ unit.up.weight.T + unit.up.bias)

    return forward


@torch.no_grad()
def plain_logits(model: Driven, mask: np.ndarray) -> Tensor:
    """The model's own forward, prompt by prompt, with linear maps instead of skipped units."""
    vlm = model.vlm
    forwards = {}
    for index in np.flatnonzero(mask).tolist():
        module = vlm.module_of(index)
        forwards[module] = plain_forward(vlm.skippable_layer(index).skip_adapter, module, vlm.layers[index].kind == "layer")
    with replace_forwards(forwards):
        return model.plain(model.prompts())


def plain_losses(model: Driven, mask: np.ndarray, evaluator: Any, examples: Any) -> float:
    return float(evaluator.task.losses(plain_logits(model, mask), evaluator.task.targets(examples)).mean())


KINDS = [("llama", "layers", False), ("llava", "layers", False), ("smolvlm", "sublayers", True)]


@pytest.mark.parametrize(("name", "units", "vision"), KINDS)
def test_engine_gives_losses_of_plain_forwards(driven, name, units, vision):
    model = fitted(driven(name, units, vision))
    evaluator, examples = evaluator_of(model), examples_by_round(model)
    masks = np.random.default_rng(0).random((6, len(model.vlm.layers))) < 0.5
    masks = masks[masks.any(axis=1)]
    wanted = [plain_losses(model, mask, evaluator, examples) for mask in masks]
    np.testing.assert_allclose(evaluator.losses(masks, examples), wanted, rtol=1e-13)
    deleted = evaluator_of(driven(name, units, vision)).losses(masks, examples)
    assert np.abs(deleted - wanted).min() > 1e-4


def test_own_forward_with_skips_agrees_with_the_engine(driven):
    """Latency is measured, and a saved folder verified, on the model's own forward."""
    model = fitted(driven("smolvlm", "sublayers"))
    mask = np.arange(len(model.vlm.layers)) % 3 == 0
    with replace_forwards(model.vlm.skip_forwards(mask)):
        found = model.plain(model.prompts())
    torch.testing.assert_close(found, model.logits(model.prompts(), mask), rtol=0, atol=1e-12)


def own_ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Ridge regression with a free bias, by centering."""
    centered, target = x - x.mean(0), y - y.mean(0)
    penalty = strength * float((x**2).sum(0).mean()) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(centered.T @ centered + penalty, centered.T @ target)
    return weight, y.mean(0) - x.mean(0) @ weight


def test_fit_is_ridge_regression_on_hidden_states(driven):
    model = copied(driven("llama"))
    read, written = [], []
    layer = model.vlm.stack.layers[1]

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        read.append(first_input(args, kwargs)[0])
        written.append(first_output(output)[0])

    handle = layer.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model.plain(model.prompts())
    handle.remove()
    fits = fit_skip_adapters(model.vlm, states_of(model, len(read)))
    x, added = torch.cat(read), torch.cat(written) - torch.cat(read)
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    weight, bias = own_ridge(x, added, fits[1].strength)
    adapter: Any = model.vlm.skippable_layer(1).skip_adapter
    torch.testing.assert_close(adapter.up.weight.T, weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(adapter.up.bias, bias, rtol=1e-6, atol=1e-8)


def test_held_out_tokens_choose_the_strength(driven):
    model = copied(driven("llama"))
    fits = fit_skip_adapters(model.vlm, states_of(model))
    assert all(fit.strength in STRENGTHS and fit.explained < 1 for fit in fits)
    assert [fit.unit for fit in fits] == [layer.name for layer in model.vlm.layers]
    without = fit_skip_adapters(model.vlm, states_of(model, batches=2))
    assert all(np.isnan(fit.explained) for fit in without)


def test_tokens_that_hardly_differ_leave_a_solution():
    # As in pretrained decoders, where a few features are so large that all normalized hidden states are nearly one vector.
    generator = torch.Generator().manual_seed(0)
    direction = torch.rand(576, generator=generator) + 0.1
    lengths = 1 + 1e-4 * torch.randn(16, 1024, 1, generator=generator)
    inputs = lengths * direction * (576**0.5 / direction.norm())
    fit = fit_ridge([(batch, batch[:, :8]) for batch in inputs])
    assert fit.strength > STRENGTHS[0]
    np.testing.assert_allclose(fit(inputs[0]), inputs[0, :, :8], rtol=1e-3)


def test_a_rank_stores_two_factors_and_full_rank_loses_nothing(driven):
    model = driven("llama")
    narrow, whole, full = (fitted(model, rank=rank) for rank in (3, tiny.WIDTH, None))
    adapter: Any = narrow.vlm.skippable_layer(0).skip_adapter
    assert adapter.down.weight.shape == (3, tiny.WIDTH)
    mask = np.array([True, False, True, False])
    logits = [each.logits(each.prompts(), mask) for each in (narrow, whole, full)]
    torch.testing.assert_close(logits[1], logits[2], rtol=0, atol=1e-8)
    assert (logits[0] - logits[2]).abs().max() > 1e-6


def test_units_of_a_mask_are_fitted_in_order(driven):
    model = driven("llama")
    mask = np.array([True, True, False, True])
    alone, chained = fitted(model), fitted(model, mask=mask)
    assert isinstance(chained.vlm.skippable_layer(2).skip_adapter, torch.nn.Identity)
    first: list[Any] = [each.vlm.skippable_layer(0).skip_adapter for each in (alone, chained)]
    torch.testing.assert_close(first[0].up.weight, first[1].up.weight)
    full = model.logits(model.prompts(), ~mask & mask)
    errors = [float((each.logits(each.prompts(), mask) - full).pow(2).mean()) for each in (alone, chained)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("rank", [0, tiny.WIDTH + 1])
def test_impossible_ranks(driven, rank):
    with pytest.raises(ValueError, match="`skip_rank`"):
        fitted(driven("llama"), rank=rank)


def test_no_calibration_examples(driven):
    with pytest.raises(ValueError, match="calibration"):
        fit_skip_adapters(copied(driven("llama")).vlm, [])


SAVED = {
    "llama": ("layers", False, (1, 0, 0, 1)),
    "llava": ("layers", True, (0, 1, 1, 0, 1, 0)),
    "smolvlm": ("sublayers", True, (1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0)),
    "gemma3": ("sublayers", False, (1, 0, 0, 1, 0, 0, 1, 1)),
    "qwen3_vl": ("layers", True, (1, 0, 1)),
}
"""Units, whether vision layers are units, and a mask: whole layers, attentions and MLPs, also both of a layer."""


@pytest.mark.parametrize(("name", "share"), [*((name, False) for name in SAVED), ("llava", True)])
def test_saved_folder_gives_logits_of_a_plain_forward(driven, folder_of, tmp_path, name, share):
    units, vision, bits = SAVED[name]
    mask = np.array(bits, dtype=bool)
    model = fitted(driven(name, units, vision), mask=mask, share=share)
    smaller = copy_with_linear_skips(model.vlm, mask)
    wanted = plain_logits(model, mask)
    torch.testing.assert_close(model.with_model(smaller.model).plain(model.prompts()), wanted, rtol=0, atol=1e-14)
    save(smaller.model, tmp_path / "out", folder_of(name), folder_of(name), torch.float64)
    loaded, report = load(tmp_path / "out")
    assert not report
    torch.testing.assert_close(model.with_model(loaded).plain(model.prompts()), wanted, rtol=0, atol=1e-14)
    masked = Driven(full_model_with_adapters(driven(name, units, vision).vlm, smaller, mask), model.processor)
    torch.testing.assert_close(masked.logits(model.prompts(), mask), wanted, rtol=0, atol=1e-12)


def test_consecutive_layers_share_the_ridge_regression_over_all_of_them(driven):
    model = copied(driven("llama"))
    mask = np.array([False, True, True, False])
    states = states_of(model)
    (fit,) = fit_skip_adapters(model.vlm, states, mask=mask, share=True)
    alone, shared = (model.vlm.skippable_layer(index).skip_adapter for index in (1, 2))
    assert isinstance(alone, nn.Identity)
    read, added = [], []
    for state in states:
        hidden = [state.hidden["joint"]]
        for index in range(3):
            hidden.append(model.vlm.run_layer(index, state.with_hidden({"joint": hidden[-1]}), skipped=False))
        read.append(hidden[1][0])
        added.append((hidden[3] - hidden[1])[0])
    x = torch.cat(read)
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    weight, bias = own_ridge(x, torch.cat(added), fit.strength)
    torch.testing.assert_close(shared.up.weight.T, weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(shared.up.bias, bias, rtol=1e-6, atol=1e-8)


def test_a_loaded_folder_can_be_pickled(driven, folder_of, tmp_path):
    """As Ray and multiprocessing do with a model; transformers' own hooks cannot be pickled once it has run."""
    mask = np.array(SAVED["llava"][2], dtype=bool)
    model = fitted(driven("llava", vision=True), mask=mask)
    save(copy_with_linear_skips(model.vlm, mask).model, tmp_path / "whole", *[folder_of("llava")] * 2, torch.float64)
    loaded, _ = load(tmp_path / "whole")
    torch.save(loaded, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    wanted = model.with_model(loaded).plain(model.prompts())
    assert torch.equal(model.with_model(again).plain(model.prompts()), wanted)
