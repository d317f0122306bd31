"""Generated answers: a model says the answer in words of its own vocabulary."""
