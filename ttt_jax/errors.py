"""UserError: the one exception for wrong input."""


class UserError(ValueError):
  """One sentence: the offending value, where it is, and what would be right.

  The command line prints it without a traceback and exits with code 2. A bug is an assert or any
  other exception, and keeps its traceback.
  """
