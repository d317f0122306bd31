"""How the bundled SmolVLM-mini was made."""
