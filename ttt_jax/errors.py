"""The exceptions that the command line prints as one sentence."""


class UserError(ValueError):
  """One sentence: the offending value, where it is, and what would be right.

  The command line prints it without a traceback and exits with code 2. A bug is an assert or any
  other exception, and keeps its traceback.
  """


class RetryableError(Exception):
  """One sentence about the environment, where the same command may succeed later.

  The command line prints it without a traceback and exits with code 1, after which a supervisor
  tries again.
  """
