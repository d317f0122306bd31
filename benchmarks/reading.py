"""Fine-tuning on pictures of a camera's size, read by the process that trains, and by others beside it: what a step takes.

    python -m benchmarks.reading                              METER-mini at 384 px, 640 x 480 JPEGs, 0 and 2 processes
    python -m benchmarks.reading --workers 0 1 2 4 --json reading.json

`first pass`: encoder outputs are kept, and every picture is read once. `augmented`: every step reads its pictures anew, as
with the paper's settings. Pictures are smooth noise, of about 100 kB. Beside steps a second it tells the processor's time
in the process that trains, which hardly depends on what else runs, and the machine's load: processes that read need cores
that nobody else has. Three minutes on two cores.
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

SIZE, QUALITY = (640, 480), 90


def camera_sized(folder: Path, pictures: int) -> Path:
    """Data in VQAv2's format whose training pictures are JPEGs of 640 x 480; what they show fits no question."""
    root, rng = write_shapes(folder / "data", train_scenes=pictures, val_scenes=20), np.random.default_rng(0)
    for path in sorted((root / "train2014").iterdir()):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=QUALITY)
    return root


def measured(
    splits: Splits[Any], problem: ProblemConfig, augment: bool, workers: int, batch_size: int
) -> dict[str, str | int | float]:
    """One pass over one example a picture; the processes' start and two first steps are left out."""
    examples = list({example.image.key: example for example in splits.train}.values())
    model = new_subnet(problem, splits)
    backbone, head = model.backbone, model.head
    hardware = Hardware(dataloader_num_workers=workers)
    step_loss = StepLoss(backbone, head, model.task, examples, batch_size, 0, augment, hardware=hardware)
    trained = [p for p in (*backbone.vlp.parameters(), *head.parameters()) if p.requires_grad]
    steps, started, way = len(examples) // batch_size, [0.0, 0.0], "augmented" if augment else "first pass"
    trainer = Trainer(
        {"vlp": backbone.vlp, "head": head},
        adamw([Group(trained, 1e-4)], 0.01),
        steps,
        lambda step: 1.0,
        reading=step_loss.reading,
    )

    def step(number: int) -> Any:
        if number == 2:
            started[:] = time.perf_counter(), time.process_time()
        return step_loss.parts(number)

    trainer.run(step, f"{workers} processes, {way}")
    seconds, busy = time.perf_counter() - started[0], time.process_time() - started[1]
    speed = {"steps_a_second": (steps - 2) / seconds, "busy_milliseconds_a_step": 1e3 * busy / (steps - 2)}
    return {"way": way, "workers": workers, **speed, "load": os.getloadavg()[0]}


def compare(workers: list[int], pictures: int, batch_size: int, image_size: int) -> dict[str, Any]:
    """Both ways with each number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        problem = ProblemConfig(data_root=str(camera_sized(Path(folder), pictures)), image_size=image_size)
        splits = load_splits(problem)
        rows = [measured(splits, problem, augment, count, batch_size) for augment in (False, True) for count in workers]
    return {
        "rows": rows,
        "pictures": pictures,
        "batch_size": batch_size,
        "image_size": image_size,
        "machine": describe_machine(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=384, help="pixels, as the model reads them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = compare(options.workers, options.pictures, options.batch_size, options.image_size)
    for row in record["rows"]:
        speed = (
            f"{row['steps_a_second']:.2f} steps a second, {row['busy_milliseconds_a_step']:.0f} ms of this process a step"
        )
        print(f"{row['way']}, {row['workers']} processes read: {speed}, load {row['load']:.1f}")
    if options.json:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
