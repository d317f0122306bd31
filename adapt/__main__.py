"""`python -m adapt`, in a clone and as `das_gym.adapt`."""

from das_gym.adapt.commands import main

main()
