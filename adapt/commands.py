"""`python -m adapt` and its sub-commands."""

from das_gym.commands.commandline import Command, Program

RUNS = "das_gym.adapt.run_commands"

PROGRAM = Program(
    "adapt",
    {
        "run": Command(f"{RUNS}:adapt", "[with ...]", "search a mask, fine-tune it, compare with the baseline"),
        "das": Command(f"{RUNS}:das", "[with ...]", "the paper's pipeline: search while adapters train, then fine-tune"),
        "compare": Command(
            f"{RUNS}:compare", "[with ...]", "methods side by side: of fine-tuning (LoRA, DAS, ...), of choosing layers"
        ),
        "shrink": Command(
            f"{RUNS}:shrink",
            "with checkpoint=... out=...",
            "delete layers of a transformers model, recover, save a folder",
        ),
        "supernet": Command(f"{RUNS}:supernet", "[with ...]", "train adapters and head over random masks"),
        "evaluate": Command(
            "das_gym.adapt.evaluate:evaluation_main",
            "with run=... [split=... data_root=... out=...]",
            "score a fine-tuned subnet on any part of any data, and write its answers",
            settings="das_gym.adapt.finished_runs:EvaluateSettings",
        ),
        "predict": Command(
            "das_gym.adapt.evaluate:prediction_main",
            "with run=... out=... [split=... data_root=...]",
            "write answers to questions without reference answers, such as VQA's test-dev",
            settings="das_gym.adapt.finished_runs:PredictSettings",
        ),
        "export": Command(
            "das_gym.adapt.export.command:main",
            "with run=... out=...",
            "write a fine-tuned subnet for transformers, or as ONNX",
            settings="das_gym.adapt.finished_runs:ExportSettings",
        ),
        "report": Command(
            "das_gym.adapt.run_report:main",
            "RUN... [with out=...]",
            "results of searches and of runs that fine-tuned, side by side, as one HTML file",
            settings="das_gym.adapt.finished_runs:ReportSettings",
            positional="runs",
        ),
        "paper": Command(
            "das_gym.adapt.paper_command:main",
            "",
            "the paper's settings, costs and tables, and the command of each cell",
            settings="das_gym.commands.runs:PluginSettings",
        ),
    },
    default_command="run",
    examples=(
        ("", "search, fine-tune, compare: bundled model and data, two minutes"),
        ("with search_run=3", "fine-tune what search 3 found"),
        ("shrink with checkpoint=DIR data_root=DIR macs_saved=0.2", "a smaller folder of transformers"),
        ("das with meter_vqa paper", "the paper's pipeline with its settings"),
        ("report 3 4", "two runs side by side"),
        ("export with run=4 out=DIR", "a fine-tuned subnet for transformers"),
    ),
    runs_alone=True,
)

main = PROGRAM.main
