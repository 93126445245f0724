"""Stop requests: signal handlers set them, the training loop acts on them after a step."""

from collections.abc import Callable

NONE, INTERRUPTED, PREEMPTED = 0, 1, 2  # the maximum over processes is taken


class Stop:
  """Which stop was requested in this process, and which one all processes have agreed on.

  The command line calls ``request`` from its signal handlers (Ctrl-C, SIGTERM, SIGUSR1). The loop
  reads ``level`` at every step and sets ``agreed`` once all processes know of it, so that they
  save the same step and exit.
  """

  def __init__(self, exit_now: Callable[..., None] = lambda error=None: None):
    """Args:
      exit_now: ends the process at once; called for a run that is stuck, and with an error for one
        that waits for a process which has failed.
    """
    self.level = NONE
    self.requested = False  # whether ``request`` was called: the run will save and exit
    self.agreed = NONE
    self.exit_now = exit_now

  def request(self, level: int) -> None:
    """Request a stop; safe in a signal handler."""
    self.level = max(self.level, level)
    self.requested = True
