"""Facts about the machine and the process: hardware, progress lines."""
