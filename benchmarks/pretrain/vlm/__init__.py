"""Pre-training models of transformers that answer questions about scenes in words: SmolVLM-mini and LLaVA-mini."""
