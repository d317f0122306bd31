"""Who trains: supernets, fine-tuning, the pipeline of the paper, pre-training of the bundled models."""
