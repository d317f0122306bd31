"""`python -m agents`, in a clone and as `das_gym.agents`."""

from das_gym.agents.commands import main

main()
