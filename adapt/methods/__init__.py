"""Ways to fine-tune a pre-trained model with few parameters, or all: `base` says what one is; each has a file of its own."""
