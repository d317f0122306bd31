"""Steps a second of fine-tuning on pictures of a camera's size, read by the process that trains, and by others beside it.

    python -m benchmarks.reading                              METER-mini at 384 px, 640 x 480 JPEGs, 0 and 2 processes
    python -m benchmarks.reading --workers 0 1 2 4 --json reading.json

`first pass`: encoder outputs are kept, and every picture is read once. `augmented`: every step reads its pictures anew, as
with the paper's settings. Pictures are smooth noise, of about 100 kB. It tells the machine's load, too: processes that read
need cores that nobody else has. Three minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.finetune import new_subnet
from das_gym.adapt.hardware import Hardware
from das_gym.adapt.step_loss import StepLoss
from das_gym.adapt.training import Group, Trainer, adamw
from PIL import Image

from benchmarks.machine import describe_machine
from das_gym.data.splits import Splits
from das_gym.files import write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits
from das_gym.shapes.vqa import write_shapes

SIZE, IMAGE_SIZE, QUALITY = (640, 480), 384, 90


def camera_sized(folder: Path, pictures: int) -> Path:
    """Data in VQAv2's format whose training pictures are JPEGs of 640 x 480; what they show fits no question."""
    root, rng = write_shapes(folder / "data", train_scenes=pictures, val_scenes=20), np.random.default_rng(0)
    for path in sorted((root / "train2014").iterdir()):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=QUALITY)
    return root


def steps_a_second(splits: Splits[Any], problem: ProblemConfig, augment: bool, workers: int, batch_size: int) -> float:
    """Of one pass over one example a picture; the processes' start and two first steps are left out."""
    examples = list({example.image.key: example for example in splits.train}.values())
    model = new_subnet(problem, splits)
    backbone, head = model.backbone, model.head
    hardware = Hardware(dataloader_num_workers=workers)
    step_loss = StepLoss(backbone, head, model.task, examples, batch_size, 0, augment, hardware=hardware)
    trained = [p for p in (*backbone.vlp.parameters(), *head.parameters()) if p.requires_grad]
    steps, started = len(examples) // batch_size, [0.0]
    trainer = Trainer(
        {"vlp": backbone.vlp, "head": head},
        adamw([Group(trained, 1e-4)], 0.01),
        steps,
        lambda step: 1.0,
        reading=step_loss.reading,
    )

    def step(number: int) -> Any:
        if number == 2:
            started[0] = time.perf_counter()
        return step_loss.parts(number)

    trainer.run(step, f"{workers} processes, {'augmented' if augment else 'first pass'}")
    return (steps - 2) / (time.perf_counter() - started[0])


def compare(workers: list[int], pictures: int, batch_size: int) -> dict[str, Any]:
    """Both ways with each number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        problem = ProblemConfig(data_root=str(camera_sized(Path(folder), pictures)), image_size=IMAGE_SIZE)
        splits = load_splits(problem)
        rows = [
            {
                "way": "augmented" if augment else "first pass",
                "workers": count,
                "steps_a_second": steps_a_second(splits, problem, augment, count, batch_size),
                "load": os.getloadavg()[0],
            }
            for augment in (False, True)
            for count in workers
        ]
    return {"rows": rows, "pictures": pictures, "batch_size": batch_size, "machine": describe_machine()}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = compare(options.workers, options.pictures, options.batch_size)
    for row in record["rows"]:
        speed, load = f"{row['steps_a_second']:.2f} steps a second", f"load {row['load']:.1f}"
        print(f"{row['way']}, {row['workers']} processes read: {speed}, {load}")
    if options.json:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
