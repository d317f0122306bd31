"""`python -m agents` and its sub-commands."""

from das_gym.commands.commandline import Command, Program

PROGRAM = Program(
    "agents",
    {
        "search": Command("das_gym.agents.run_commands:search", "[with ...]", "search which layers a task does not need"),
        "pareto": Command(
            "das_gym.agents.run_commands:pareto", "[with ...]", "for every budget the best mask, from one search"
        ),
        "table": Command("das_gym.agents.run_commands:table", "[with ...]", "score every mask: ground truth for searches"),
        "compare": Command("das_gym.agents.run_commands:compare", "[with ...]", "agents against each other on a table"),
        "list": Command(
            "das_gym.agents.listing:main",
            "[with plugins=...]",
            "names of environments, agents, rewards and statistics",
            settings="das_gym.commands.runs:PluginSettings",
        ),
    },
    default_command="search",
    examples=(
        ("with meter_vqa bandit skip_num=4 seed=1", "the paper's bandit: which 4 of METER's 12 layers?"),
        ("with bayes macs_saved=0.12", "our own agent, with a budget by cost"),
        ("with vlm_answering checkpoint=DIR data_root=DIR bayes", "a model of transformers, on custom data"),
        ("with resume=3", "continue run 3, which was stopped"),
        ("compare with vilt_vqa", "agents against each other on a bundled table"),
    ),
)

main = PROGRAM.main
