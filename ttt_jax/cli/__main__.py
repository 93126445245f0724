"""``python -m ttt_jax.cli`` is the same as the command ``ttt-jax``."""

import sys

from ttt_jax.cli.main import main

if __name__ == '__main__':
  sys.exit(main())
