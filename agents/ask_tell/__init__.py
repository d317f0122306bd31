"""Agents with an ask/tell interface, which need no gradients. `base` defines the interface; each agent has one file."""
