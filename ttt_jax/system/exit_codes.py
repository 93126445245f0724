"""Exit codes of `ttt-jax`, which schedulers and `ttt-jax supervise` act on."""

SUCCESS = 0
FAILURE = 1        # a bug or a lost machine: the traceback is on standard error
USER_ERROR = 2     # wrong input: one sentence on standard error; a restart would fail again
PREEMPTED = 77     # saved and stopped on request: run the same command again to resume
INTERRUPTED = 130  # Ctrl-C
