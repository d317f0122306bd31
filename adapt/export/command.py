"""A fine-tuned subnet as a folder that transformers loads, and as ONNX.

python -m adapt export with run=2 out=smaller
python -m adapt export with run=2 out=smaller onnx=True
python -m adapt export with run=/data/runs/2 out=smaller
python -m adapt export with run=5 method=das_4 out=smaller
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from das_gym.adapt.compare.record import Trial
from das_gym.adapt.export.folder import ExportedFolder, export
from das_gym.adapt.export.graph import FILE
from das_gym.adapt.finished_runs import ExportSettings, FinishedRun
from das_gym.adapt.methods import METHODS
from das_gym.adapt.report import results_table
from das_gym.adapt.shrinking.report import print_left_out
from das_gym.adapt.subnets import load_finished

from das_gym.files import expand_home, explain_damage
from das_gym.registration import MODELS, find_class


def run_export(settings: ExportSettings) -> ExportedFolder:
    """Write the folder; ValueError if the run's method leaves modules that transformers has no code for."""
    out = expand_home(settings.out)
    row = find_class(METHODS[settings.method]) if settings.method in METHODS else None
    if row is not None and row.remaining:
        raise ValueError(
            f"method={settings.method} cannot be exported: it leaves {row.remaining}, for which transformers has no code "
            "(full, head, bitfit, lora and das leave none); `evaluate` and `predict` take it as it is"
        )
    record = _card_record(settings.finished)
    subnet = load_finished(settings, "cpu")
    vlp = subnet.backbone.vlp
    if vlp.pruned_mask is None:  # of a method that removes nothing
        vlp.prune(np.zeros(len(vlp.layers), bool))
    config = subnet.backbone.origin.config
    if config is None or not MODELS[config.model].reads_prompts:
        return export(subnet, out, settings.onnx, record)
    from das_gym.adapt.export.answering import export_answering

    return export_answering(subnet, out, record, settings.dtype)


def _card_record(run: FinishedRun) -> Mapping[str, Any]:
    """Return what the model card reads of a run's record; ValueError if that is damaged."""
    if run.record is None:
        return {}
    with explain_damage(run.record, "fine-tune it again"):
        record = run.content if run.trial is None else _compared(run.content, run.trial)
        results_table(record.get("models") or ())
    return record


def _compared(record: Mapping[str, Any], trial: Trial) -> dict[str, Any]:
    """Return the entry of a kept model in the record of a comparison, in the format of other runs' records."""
    model = {
        "name": trial.title,
        "trainable_parameters": trial.trained,
        "macs": trial.macs,
        "macs_saved": 1 - (trial.macs or 0) / (trial.macs_full or 1),
        "metric": trial.test,
        "metric_name": record["metric"],
        "loss": trial.test_loss,
        "latency_ms": trial.latency,
    }
    return {"problem": record["problem"], "row": f"{trial.title}, learning rate {trial.rate:g}", "models": [model]}


def main(settings: ExportSettings) -> None:
    """Export, and print how far the result differs from the masked model."""
    written = run_export(settings)
    print(f"{written.folder}: {written.parameters:,} parameters, loads with {written.loads_with}")
    if written.dtype:
        print(f"weights: {written.dtype}")
    print_left_out(written.left_out)
    print(f"logits of the folder and of the masked model differ by at most {written.difference:.2g}")
    if written.onnx_difference is not None:
        print(f"{FILE}: any batch and text length; onnxruntime's logits differ by at most {written.onnx_difference:.2g}")
