"""Agents without gradients: asked for masks, told rewards. `base` says what one is; each has a file of its own."""
