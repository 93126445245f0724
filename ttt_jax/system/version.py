"""Which code is running: the package's version and the commit it was checked out from."""

import functools
import importlib.metadata
import pathlib
import subprocess


def version() -> str:
  """The installed version of this package, or '' if it was never installed."""
  try:
    return importlib.metadata.version('ttt_jax')
  except importlib.metadata.PackageNotFoundError:
    return ''


@functools.cache
def git_revision() -> str:
  """The commit of this code, with '+' if files were changed since, or '' outside a repository."""
  package = pathlib.Path(__file__).parents[1]

  def git(*args: str) -> str:
    return subprocess.run(['git', '-C', str(package), *args], capture_output=True, text=True,
                          timeout=10, check=True).stdout.strip()
  try:
    return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '-uno', '.') else '')
  except (OSError, subprocess.SubprocessError):
    return ''
