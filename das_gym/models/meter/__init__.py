"""METER: the model, its inputs, its checkpoints."""
