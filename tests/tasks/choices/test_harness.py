"""A smaller folder in EleutherAI's lm-evaluation-harness, where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.subnets import load_transformers_model

from das_gym.models.transformers import prune
from tests.models.transformers import tiny
from tests.tasks.answering.making import write_lines

lm_eval = pytest.importorskip("lm_eval", reason="the harness is no dependency: pip install lm-eval")

OPTIONS = ["red", "blue green", "is it true"]


@pytest.mark.slow
def test_the_harness_counts_the_same_right_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    source, folder, data = (tmp_path / name for name in ("llama", "smaller", "questions.jsonl"))
    tiny.save("llama", source)
    prune(AutoModelForCausalLM.from_pretrained(source), np.array([0, 1, 0, 0], bool)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    rows = [
        {"question": f"what colour is {n}?", "options": OPTIONS[n % 2 :] + OPTIONS[: n % 2], "answer": n % 3}
        for n in range(10)
    ]
    write_lines(data, rows)
    task: dict[str, Any] = {
        "task": "ten_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    model = HFLM(pretrained=str(folder), device="cpu", batch_size=1)
    results = lm_eval.simple_evaluate(model, tasks=[task], bootstrap_iters=0)["results"]["ten_questions"]
    subnet = load_transformers_model(folder, "choices", "cpu", trust_remote_code=False)
    splits = type(subnet.task).load_splits(data)
    found = evaluate(subnet, [*splits.train, *splits.reward, *splits.test], "")
    assert found.examples == 10
    assert found.numbers["acc"] == pytest.approx(results["acc,none"])
    assert found.numbers["acc_norm"] == pytest.approx(results["acc_norm,none"])
