"""The one exception for what a user got wrong."""


class UserError(ValueError):
  """One sentence: the offending value, where it stands, and what would be right.

  The command line prints it without a traceback and exits with code 2. Anything
  that is our own mistake is an assert or another exception, and keeps its traceback.
  """
