"""The command line: flags, process-wide settings, exit codes; a module per group of commands."""

import os

# OpenBLAS reads it when NumPy is imported, which main does: see main._configure_process.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
