"""Asking a run to stop: signal handlers ask, the training loop answers at the end of a step."""

from collections.abc import Callable

NONE, INTERRUPTED, PREEMPTED = 0, 1, 2  # the larger one wins when processes disagree


class Stop:
  """What was asked for, and what all processes have agreed on.

  The command line sets ``level`` from its signal handlers (Ctrl-C, SIGTERM, SIGUSR1); a run
  that was never given a Stop cannot be stopped. The loop reads ``level`` at every step and
  writes ``agreed`` once all processes know, so that they save the same step and leave.
  """

  def __init__(self, leave: Callable[[], None] = lambda: None):
    """Args:
      leave: ends the process at once, for a run that is stuck; the command line has one.
    """
    self.level = NONE
    self.agreed = NONE
    self.leave = leave

  def ask(self, level: int) -> None:
    """Ask to stop; safe in a signal handler."""
    self.level = max(self.level, level)
