"""Methods of fine-tuning side by side: who takes part, one training of each, and what all of them come to."""
