"""Vision-language models, one folder a family: what can be skipped, and how."""
