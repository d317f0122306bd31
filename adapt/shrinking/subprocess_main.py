"""Run as a script, in a separate process: load a folder with transformers alone, and write its logits and texts.

    python -P subprocess_main.py FOLDER INPUT OUTPUT

INPUT and OUTPUT are files of `torch.save`, see `das_gym.adapt.shrinking.verifying`. das_gym cannot be imported here. If
standard input is a pipe, the process ends with it, since the process that waits for the result may be killed.
"""

import os
import stat
import sys
import threading
from typing import Any


def exit_with_stdin() -> None:
    """Wait for the end of standard input, and end the process."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def main(folder: str, input_path: str, output_path: str) -> None:
    """Load, run, and write the results."""
    sys.modules["das_gym"] = None  # type: ignore[assignment]  # every import of it fails
    import torch
    import transformers

    given = torch.load(input_path, weights_only=True)
    dtype = getattr(torch, given["dtype"])
    torch.set_num_threads(given["threads"])
    options = {"local_files_only": True, "trust_remote_code": given["trust_remote_code"]}
    auto = getattr(transformers, given["auto"])
    model = auto.from_pretrained(folder, dtype=dtype, device_map=given["device_map"], **options).eval()
    model = model if given["device_map"] else model.to(given["device"])
    if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # transformers' grouped matmul of experts lacks float64
    options["trust_remote_code"] = given["trust_processor"]
    processor = transformers.AutoProcessor.from_pretrained(folder, **options)
    tokenizer = getattr(processor, "tokenizer", processor)
    found: dict[str, Any] = {"logits": [], "generated": {}}
    found["tokens"] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in given["texts"]]
    with torch.no_grad():
        for batch, answer_start in given["teacher_forced"]:
            batch = {name: value.to(model.device) for name, value in batch.items()}
            found["logits"].append(model(**batch, use_cache=False).logits[0, answer_start - 1 : -1].cpu())
        model.generation_config = transformers.GenerationConfig(**given["generation"])
        for way, (batches, generate_options) in given["ways"].items():
            rows = []
            for batch in batches:
                batch = {name: value.to(model.device) for name, value in batch.items()}
                tokens = model.generate(**batch, **generate_options)
                rows += tokens[:, batch["input_ids"].shape[1] :].tolist()
            found["generated"][way] = rows
    torch.save(found, output_path)


if __name__ == "__main__":
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=exit_with_stdin, daemon=True).start()
    main(*sys.argv[1:])
