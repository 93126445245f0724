"""Training runs from outside their process: supervisor, sweeps, status, reports."""
