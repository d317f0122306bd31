"""Run as a script, in a process of its own: loads a folder with transformers alone and says what it says.

    python -P fresh.py FOLDER GIVEN WANTED

`GIVEN` and `WANTED` are files of `torch.save`, see `das_gym.adapt.shrink.verifying`. das_gym cannot be imported here.
Where its input is a pipe it ends with that: whoever waits for it may be killed.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from typing import Any


class NoDasGym:
    """Refuses every import of das_gym."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Raise for what is not transformers' own."""
        del path, target
        if name.partition(".")[0] == "das_gym":
            raise ImportError("the folder has to load without das_gym")


def end_with_input() -> None:
    """Wait for the end of the input, and end the process."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def taken(device: str, field: str) -> int:
    """Bytes of memory, on the graphics card, or of this process: now (`VmRSS`) or at most (`VmHWM`)."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated())
    try:
        with open("/proc/self/status") as file:  # noqa: PTH123
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def restart_peak() -> None:
    """Let `VmHWM` begin anew, where the system allows that."""
    try:
        with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
            file.write("5")
    except OSError:
        pass


def main(folder: str, given_path: str, wanted_path: str) -> None:
    """Load, run, and write what came out."""
    sys.meta_path.insert(0, NoDasGym)
    import torch
    import transformers

    given = torch.load(given_path, weights_only=True)
    torch.set_num_threads(given["threads"])
    options = {"local_files_only": True, "trust_remote_code": given["trust_remote_code"]}
    auto = getattr(transformers, given["auto"])
    restart_peak()
    before = taken(given["device"], "VmRSS")
    model = auto.from_pretrained(folder, dtype=getattr(torch, given["dtype"]), **options).to(given["device"]).eval()
    if given["dtype"] == "float64" and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # transformers' grouped product of experts knows no double
    options["trust_remote_code"] = given["trust_processor"]
    processor = transformers.AutoProcessor.from_pretrained(folder, **options)
    placed = lambda batch: {name: value.to(given["device"]) for name, value in batch.items()}  # noqa: E731
    found: dict[str, Any] = {"logits": [], "said": {}, "tokens": []}
    with torch.no_grad():
        for batch, first in given["whole"]:
            found["logits"].append(model(**placed(batch), use_cache=False).logits[0, first - 1 : -1].cpu())
        model.generation_config = transformers.GenerationConfig(**given["settings"])
        for name, (batches, more) in given["asked"].items():
            found["said"][name] = [
                row for b in batches for row in model.generate(**placed(b), **more)[:, b["input_ids"].shape[1] :].tolist()
            ]
    tokenizer = getattr(processor, "tokenizer", processor)
    found["tokens"] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in given["texts"]]
    found["peak_bytes"] = taken(given["device"], "VmHWM") - before
    torch.save(found, wanted_path)


if __name__ == "__main__":
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=end_with_input, daemon=True).start()
    main(*sys.argv[1:])
