"""What each method trains, inserts and leaves behind, on tiny models of three families."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.compare.settings import CompareSettings
from das_gym.adapt.compare_experiment import supported_methods
from das_gym.adapt.methods import METHODS
from das_gym.adapt.methods.base import (
    Method,
    make_method,
    register_method,
    restore_adaptation,
    to_adaptation,
    trained_parameters,
)
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.step_loss import StepLoss, make_loss_and_trainer
from das_gym.adapt.training import Trainer

from das_gym.models.checkpoints import save_checkpoint
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig
from das_gym.problem.adaptation import Adaptation, MethodSettings
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import (
    AdaptedModel,
    example_costs,
    find_supernet,
    load_backbone,
    load_splits,
    new_head,
    task_class,
)
from das_gym.registration import ASSETS
from tests.crossing import crossed
from tests.fake_device import DEVICE, FakeDeviceTensor, fake_device, two_devices

FAMILIES = ("METER", "ViLT", "VLM")
REFUSED = {
    ("VLM", "head"): "nothing would train, since a VLM has its own head",
    ("VLM", "bitfit"): "a LlamaDecoderLayer has no biases",
}
HAVING = [(family, name) for family in FAMILIES for name in METHODS if (family, name) not in REFUSED]
COUNTS = {
    "head": 0,
    "bitfit": 6 * (8 * 64 + 4 * 64 + 64 + 3 * 64),  # two attentions of four projections, feed-forward, three LayerNorms
    "lora": 6 * 2 * 2 * (2 * 64 * 4),
    "adapter": 6 * 3 * (2 * 64 * 16 + 16 + 64),
    "parallel": 6 * (2 * 64 * 16 + 16 + 64),
    "das": 6 * 3 * (2 * 64 * 16 + 16 + 64 + 2 * 64),
}
"""Parameters that a METER of width 64 with six fusion layers updates, worked out by hand."""


@dataclass(frozen=True)
class World:
    problem: ProblemConfig
    splits: Any

    def model(self) -> AdaptedModel:
        backbone, kind = load_backbone(self.problem), task_class(self.problem.task)
        task = kind(backbone.processor, kind.choose_labels(self.splits))
        torch.manual_seed(0)
        return AdaptedModel(backbone, new_head(backbone, task), task)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, bare_kwargs, shapes_folder, tiny_llava) -> dict[str, World]:
    folder = tmp_path_factory.mktemp("methods")
    torch.manual_seed(0)
    vilt, sizes = ASSETS / "vilt_mini", {"image_size": 96, "patch_size": 16, "hidden_size": 32, "num_heads": 2}
    words = load_backbone(ProblemConfig("ViLT", "vqa")).vlp.config.vocab_size
    model = ViLT(ViLTConfig(**sizes, num_layers=3, vocab_size=words, bottleneck=4, skip_bottleneck=8))
    save_checkpoint(folder / "vilt", model, files={"tokenizer.json": (vilt / "tokenizer.json").read_text()})
    data = {"data_root": str(shapes_folder)}
    problems = (
        ProblemConfig("METER", "vqa", **bare_kwargs),
        ProblemConfig("ViLT", "vqa", checkpoint=str(folder / "vilt"), tokenizer=str(vilt), **data),
        ProblemConfig("VLM", "answering", **tiny_llava),
    )
    return {problem.model: World(problem, load_splits(problem)) for problem in problems}


@torch.no_grad()
def features_of(model: AdaptedModel, splits: Any) -> torch.Tensor:
    return model.backbone.vlp.make_forward(model.task.processor, model.task.pairs(splits.test[:2]))()


def logits_of(model: AdaptedModel, splits: Any) -> torch.Tensor:
    return model.head(model.task.group_features(features_of(model, splits)))


def parameters(model: AdaptedModel) -> dict[int, torch.Tensor]:
    return {id(p): p for module in (model.backbone.vlp, model.head) for p in module.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), HAVING)
def test_method_trains_only_its_parameters(worlds, family, name):
    world = worlds[family]
    plain, model = world.model(), world.model()
    updated = make_method(name).apply(model)
    if name in ("lora", "adapter", "parallel"):  # what they insert has no effect at first
        plain.backbone.vlp.remove_adapters()
        assert torch.allclose(features_of(model, world.splits), features_of(plain, world.splits), atol=1e-6)
    before = {key: p.detach().clone() for key, p in parameters(model).items()}
    config = TrainingConfig(steps=2, batch_size=4, learning_rate=1e-2, head_learning_rate=1e-2)
    parts, trainer = make_loss_and_trainer(model, world.splits.train, config, None)
    trainer.run(parts, name)
    changed = [p for key, p in parameters(model).items() if not torch.equal(p, before[key])]
    assert changed
    assert all(p.requires_grad for p in changed)
    assert parts.caches_encoders == (name != "full")
    if family == "METER" and name in COUNTS:
        assert updated == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [pair for pair in HAVING if pair[1] in ("lora", "das")])
def test_training_on_another_device(worlds, family, name, monkeypatch):
    """All tensors lie on that device, which raises where they meet tensors of the CPU, as CUDA does."""
    monkeypatch.setattr(StepLoss, "choose_micro_batch_size", lambda *_: None)  # it asks where tensors lie in memory
    world = worlds[family]
    with fake_device():
        model = dataclasses.replace(world, problem=dataclasses.replace(world.problem, device=DEVICE)).model()
        make_method(name).apply(model)
        parts, trainer = make_loss_and_trainer(model, world.splits.train, TrainingConfig(steps=2, batch_size=4), None)
        trainer.run(parts, name)
    assert all(isinstance(p, FakeDeviceTensor) for p in parameters(model).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for family, name in HAVING if family == "VLM"])
def test_training_on_two_devices(worlds, name, monkeypatch):
    """Layers stay where `device_map` put them, and what a method inserts lies on the device of its layer."""
    monkeypatch.setattr(StepLoss, "choose_micro_batch_size", lambda *_: None)

    def train(problem: ProblemConfig) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = dataclasses.replace(worlds["VLM"], problem=problem).model()
        make_method(name).apply(model)
        config = TrainingConfig(steps=2, batch_size=4, seed=1)  # with seed 0, Adam's step of one weight depends on rounding
        parts, trainer = make_loss_and_trainer(model, worlds["VLM"].splits.train, config, None)
        trainer.run(parts, name)
        named = model.backbone.vlp.named_parameters()
        # the gradient of a key's bias is 0 but for rounding errors, which Adam makes as large as any
        return {key: p.detach().cpu() for key, p in named if not key.endswith("k_proj.bias")}

    expected = train(worlds["VLM"].problem)
    with two_devices():
        found = train(dataclasses.replace(worlds["VLM"].problem, device_map="auto"))
        assert not any(isinstance(p, FakeDeviceTensor) for p in found.values())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "name"), [("METER", "lora"), ("METER", "adapter"), ("VLM", "parallel")])
def test_inserted_modules_cost_macs_and_merged_lora_none(worlds, family, name):
    world = worlds[family]
    plain, model = world.model(), world.model()
    plain.backbone.vlp.remove_adapters()
    make_method(name).apply(model)
    mask = np.zeros(len(plain.backbone.vlp.layers), bool)
    without = example_costs(plain, world.splits).macs_full
    assert example_costs(model, world.splits).macs(mask) > without
    if name == "lora":
        make_method(name).finish(model.backbone.vlp)
        assert example_costs(model, world.splits).macs(mask) == without


def changed(world: World, name: str, **settings: Any) -> tuple[AdaptedModel, Adaptation]:
    """A model whose trained parameters are other ones than they began as, and what is kept of it."""
    model, method = world.model(), make_method(name, settings)
    method.apply(model, seed=3)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    kept = to_adaptation(model, name, method, seed=3)
    method.finish(model.backbone.vlp)
    return model, kept


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [pair for pair in HAVING if pair[0] != "ViLT" or pair[1] == "lora"])
def test_restore_adaptation_to_the_bit(worlds, family, name, tmp_path):
    world = worlds[family]
    n_layers = len(world.model().backbone.vlp.layers)
    settings = {"mask": (1, *(0,) * (n_layers - 1))} if name == "das" else {}
    model, kept = changed(world, name, **settings)
    kept.save(tmp_path / "kept.safetensors")
    again = Adaptation.load(tmp_path / "kept.safetensors")
    assert again.info == {"seed": 3}
    restored = restore_adaptation(load_backbone(world.problem), again, world.problem.task, "kept.safetensors")
    assert torch.equal(logits_of(restored, world.splits), logits_of(model, world.splits))
    weights = sum(p.numel() for p in model.backbone.vlp.parameters())
    if name != "full":
        assert sum(tensor.numel() for tensor in kept.tensors.values()) < weights / 2


OF_TRAINING: dict[str, tuple[Any, ...]] = {
    "family": FAMILIES,
    "method": ("full", "lora", "adapter", "das"),
    "micro_batch_size": (None, 3),
    "mixed_precision": ("no", "bf16"),
    "gradient_checkpointing": (False, True),
    "encoder_cache_gib": (2.0, 0.0),
    "dataloader_num_workers": (0, 1),
}


def train(world: World, method: Method, config: TrainingConfig, checkpoint: Path | None = None) -> AdaptedModel:
    """Return a model trained by a method; with a checkpoint it is interrupted before its third step and resumed."""

    def ready() -> tuple[AdaptedModel, StepLoss, Trainer]:
        model = world.model()
        method.apply(model)
        return model, *make_loss_and_trainer(model, world.splits.train, config, checkpoint)

    if checkpoint is not None:
        _, loss, trainer = ready()

        def stopping(step: int) -> Any:
            if step == 2:
                raise KeyboardInterrupt
            return loss.parts(step)

        with pytest.raises(KeyboardInterrupt):
            trainer.run(stopping, "stopped")
        assert checkpoint.is_file()
    model, loss, trainer = ready()
    trainer.run(loss.parts, "whole")
    return model


@pytest.mark.slow
def test_training_settings_combine_in_pairs(worlds, tmp_path):
    """Weights of a resumed training with micro-batches or without a cache are those of a plain training."""
    rates = dict.fromkeys(("learning_rate", "head_learning_rate"), 1e-3)
    for number, row in enumerate(crossed(OF_TRAINING)):
        world, method = worlds[row["family"]], make_method(row["method"])
        own = {name: value for name, value in row.items() if name not in ("family", "method")}
        config = TrainingConfig(steps=4, batch_size=4, save_every=1, **rates, **own)
        plain = dataclasses.replace(config, micro_batch_size=None, gradient_checkpointing=False, encoder_cache_gib=2.0)
        wanted = trained_parameters(train(world, method, plain))
        far = 5e-4 if config.mixed_precision == "bf16" else 2e-6
        model = train(world, method, config, tmp_path / f"{number}.pt")
        apart = torch.cat([(p - wanted[name]).detach().abs().flatten() for name, p in trained_parameters(model).items()])
        assert float(apart.mean()) < far, row


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": MethodSettings("lorra")}, "unknown method 'lorra'; did you mean 'lora'"),
        (
            {"method": MethodSettings("lora", {"rank": 2**20})},
            "has shape .4, 64. in the adaptation, .1048576, 64.",
        ),
        ({"mask": (1, 0, 0, 0, 0, 0)}, "parameters are only in the adaptation"),
        ({"base": "0" * 16}, "was trained on a model with fingerprint 0000000000000000"),
    ],
)
def test_restore_adaptation_checks_before_it_allocates(worlds, change, told):
    _, kept = changed(worlds["METER"], "lora")
    with pytest.raises(ValueError, match=told):
        restore_adaptation(load_backbone(worlds["METER"].problem), dataclasses.replace(kept, **change), "vqa", "kept")


def test_adaptation_of_a_method_is_not_a_supernet(worlds, tmp_path):
    _, kept = changed(worlds["METER"], "bitfit")
    kept.save(tmp_path / "kept.safetensors")
    problem = dataclasses.replace(worlds["METER"].problem, supernet=str(tmp_path / "kept.safetensors"))
    with pytest.raises(ValueError, match="the result of bitfit"):
        find_supernet(problem)
    model = worlds["METER"].model()
    with pytest.raises(ValueError, match="the method bitfit"):
        kept.apply(model.backbone.vlp, model.head, model.backbone.base)


@pytest.mark.slow
def test_comparison_takes_all_supported_methods_by_default(worlds, capsys):
    for family, world in worlds.items():
        vlp = world.model().backbone.vlp
        before = dict(vlp.named_parameters())
        supported = supported_methods(CompareSettings(problem=world.problem), vlp)
        left_out = capsys.readouterr().out.splitlines()
        assert [(family, name) for name in supported] == [pair for pair in HAVING if pair[0] == family]
        reasons = [reason for pair, reason in REFUSED.items() if pair[0] == family]
        assert len(left_out) == len(reasons)
        assert all(reason in line for reason, line in zip(reasons, left_out, strict=True))
        assert dict(vlp.named_parameters()).keys() == before.keys()
        assert all(p is before[name] for name, p in vlp.named_parameters())


@pytest.mark.parametrize(("name", "settings", "told"), [("lorra", {}, "'lora'"), ("parallel", {"scale": 0.0}, "`scale`")])
def test_make_method_names_a_wrong_setting(name, settings, told):
    with pytest.raises(ValueError, match=told):
        make_method(name, settings)


def test_register_method_adds_your_own(monkeypatch, worlds):
    class Norms(Method):
        title = "LayerNorms"

        def insert(self, vlp):
            vlp.remove_adapters()
            return [p for m in vlp.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()]

    monkeypatch.setattr("das_gym.adapt.methods.base.METHODS", dict(METHODS))
    register_method("norms", Norms)
    assert make_method("norms").apply(worlds["ViLT"].model()) == 2 * 32 * (2 * 3 + 2)
    with pytest.raises(TypeError, match="expected a subclass of Method"):
        register_method("other", dict)  # type: ignore[arg-type]
