"""Text models of many types: losses of masks are those of models without these layers, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from torch import nn
from torch.nn import functional as F  # noqa: N812

from das_gym.models.transformers.model import prepare_experts
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import build_problem
from tests.models.transformers import tiny
from tests.models.transformers.tiny import text_folder

ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
OLD = {"vocab_size": tiny.VOCABULARY, "hidden_size": tiny.WIDTH, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}

CONFIGS: dict[str, Any] = {
    "qwen2": lambda: t.Qwen2Config(**tiny.text()),
    "qwen3": lambda: t.Qwen3Config(**tiny.text()),
    "mistral": lambda: t.MistralConfig(**tiny.text(sliding_window=8)),
    "gemma2": lambda: t.Gemma2Config(**tiny.text(**ALTERNATING)),
    "gemma3_text": lambda: t.Gemma3TextConfig(**tiny.text(**ALTERNATING)),
    "phi3": lambda: t.Phi3Config(**tiny.text()),
    "olmo2": lambda: t.Olmo2Config(**tiny.text()),
    "gpt_neox": lambda: t.GPTNeoXConfig(**OLD, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48),
    "smollm3": lambda: t.SmolLM3Config(**tiny.text(no_rope_layers=[1, 1, 1, 0])),
    "qwen2_moe": lambda: t.Qwen2MoeConfig(**tiny.text(**EXPERTS)),
    "mixtral": lambda: t.MixtralConfig(**tiny.text(num_local_experts=4)),
    "granite": lambda: t.GraniteConfig(**tiny.text(logits_scaling=2.0, residual_multiplier=0.5)),
    "opt": lambda: t.OPTConfig(
        **OLD, num_hidden_layers=4, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=tiny.WIDTH
    ),
    "bloom": lambda: t.BloomConfig(**OLD, n_layer=4, n_head=4),
    "mamba": lambda: t.MambaConfig(**OLD, num_hidden_layers=4, state_size=8),
}
"""The configuration of a tiny model by type."""

QUICK = ("qwen3", "gemma2")
"""Types that every run of the tests tries."""

CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS]

MASKS = np.array([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1]], dtype=bool)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return text_folder(tmp_path_factory.mktemp("text"), documents=60)


def without(model: Any, mask: np.ndarray) -> Any:
    """Remove layers from a model, and their entries from lists of its configuration."""
    owner, name, layers = next(
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == len(mask)
    )
    kept = np.flatnonzero(~mask).tolist()
    setattr(owner, name, nn.ModuleList([layers[place] for place in kept]))
    for field, value in vars(model.config).items():
        if isinstance(value, list) and len(value) == len(mask):
            setattr(model.config, field, [value[place] for place in kept])
    model.config.num_hidden_layers = len(kept)
    return model


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_models_without_the_layers(name, data, tmp_path):
    maker = lambda: (t.AutoModelForCausalLM.from_config(CONFIGS[name]()), tiny.tokenizer())  # noqa: E731
    folder = tiny.save_made(maker, tmp_path / name, torch.float64)
    settings = {"checkpoint": str(folder), "data_root": str(data), "context": 16, "eval_batch_size": 4}
    problem = build_problem(ProblemConfig(model="VLM", task="text", **settings, device="cpu"))
    assert len(problem.vlp.layers) == MASKS.shape[1], problem.vlp.capabilities.protected
    examples = [e for e in problem.splits.train if len(e.ids) == 16][:4]
    scores = problem.evaluator.evaluate(MASKS, examples)
    ids = torch.tensor([e.ids for e in examples])
    for mask, loss in zip(MASKS, scores.losses, strict=True):
        model = prepare_experts(without(t.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64), mask))
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        own = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        # Mamba's own forward rounds logits to float32.
        assert loss == pytest.approx(float(own), abs=1e-6 if name == "mamba" else 1e-12)
