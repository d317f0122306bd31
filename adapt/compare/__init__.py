"""Comparison of fine-tuning methods: variants, trainings, kept models and the table."""
