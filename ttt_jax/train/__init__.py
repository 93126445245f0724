"""One training run: the step, the loop around it, checkpoints, validation, metrics."""
