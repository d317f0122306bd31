"""Train a supernet: adapters and head over random masks, so that every mask can be scored.

python -m adapt supernet                                       writes to runs/<id>/supernet.safetensors
python -m adapt supernet with vilt_nlvr2                       of another model, on another task
python -m adapt supernet with data_root=/data/vqa              on custom data
python -m adapt supernet with checkpoint=... tokenizer=...     on a custom checkpoint
python -m adapt supernet with train.steps=10_000               longer
python -m adapt supernet with resume=5                         continue run 5, which was stopped
"""

from pathlib import Path

from das_gym.adapt.settings import SupernetSettings
from das_gym.adapt.supernet import phases, train_supernet

from das_gym.commands.commandline import format_command, format_settings
from das_gym.commands.progress import print_estimate
from das_gym.commands.recorded import Run, required_folder
from das_gym.files import write_json
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import format_problem
from das_gym.processes import is_main_process

VOCABULARY = "vocabulary.json"


def supernet(settings: SupernetSettings, run: Run) -> None:
    """Train a supernet, write it to `out`, and print the command that searches with it."""
    if settings.estimate:
        print_estimate(phases(settings.train, settings.problem))
        return
    folder = required_folder(run)
    out = Path(settings.out) if settings.out else folder / "supernet.safetensors"
    train_supernet(settings.train, settings.problem, out, folder / "checkpoint.pt", run.log_scalar)
    if not is_main_process():
        return
    answers = Adaptation.load(out).answers
    if answers:
        write_json(folder / VOCABULARY, list(answers))
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    # A search on other data or another checkpoint would score another model.
    words = format_problem(settings.problem, *format_settings({"supernet": str(out)}))
    print(f"supernet: {out}\nNext: {format_command('agents', words)}")
