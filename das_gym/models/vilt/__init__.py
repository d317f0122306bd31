"""ViLT: the model, its inputs, its checkpoints."""
