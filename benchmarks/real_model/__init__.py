"""A really pretrained decoder, SmolLM2-135M-Instruct: with text, and with images after training."""
