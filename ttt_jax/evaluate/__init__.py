"""Scores of a trained model on held-out records: losses, word error rates, answer accuracy."""
