"""One process of a training, started by `test_processes.py`: it trains a supernet, and then fails in the main process."""

import json
import sys
from pathlib import Path

import torch
from das_gym.adapt.settings import SupernetConfig
from das_gym.adapt.supernet import train_supernet

from das_gym.problem.config import ProblemConfig
from das_gym.processes import is_main_process, rank, run_on_main_process

torch.set_num_threads(1)
problem, training, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
logged: list[tuple[str, float, int]] = []
out, checkpoint = folder / "supernet.safetensors", folder / "checkpoint.pt"
train_supernet(SupernetConfig(**training), ProblemConfig(**problem), out, checkpoint, lambda *entry: logged.append(entry))
if is_main_process():
    (folder / "logged.json").write_text(json.dumps(logged))


def fail() -> None:
    """In the first process."""
    raise FloatingPointError("the loss is nan")


for _ in range(2):  # a caller that handles the error does so in all processes
    try:
        run_on_main_process(fail)
    except FloatingPointError as error:
        (folder / f"failed{rank()}.txt").write_text(str(error))

if torch.distributed.is_initialized():  # else gloo's threads may outlive it at exit: "terminate called"
    torch.distributed.destroy_process_group()
