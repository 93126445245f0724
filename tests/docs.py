"""README.md and docs/*.md as tests read them: commands, blocks of code, names in backticks."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')),
         *(path for path in [ROOT / 'CONTRIBUTING.md'] if path.is_file())]


def name(page: pathlib.Path) -> str:
  """Relative to the repository, for messages."""
  return str(page.relative_to(ROOT))


def blocks(language: str) -> list[tuple[str, str]]:
  """(page, text) of every fenced block of a language."""
  return [(name(page), text) for page in PAGES for text in re.findall(
      rf'^```{language}\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)]


def command_lines() -> list[tuple[str, list[str]]]:
  """(page, words) of every line of the bash blocks; comments and variables in front are gone."""
  found = []
  for page, text in blocks('bash'):
    for line in text.replace('\\\n', ' ').splitlines():
      words = shlex.split(line, comments=True)
      while words and re.match(r'[A-Z_]+=', words[0]):
        words = words[1:]
      if words:
        found.append((page, words))
  return found


def ttt_jax_commands() -> dict[str, str]:
  """{command: page} of every `ttt-jax ...` line and of every one in backticks with a flag."""
  found = {shlex.join(words): page for page, words in command_lines() if words[0] == 'ttt-jax'}
  for page in PAGES:
    for text in re.findall(r'`(ttt-jax [^`\n]*--[^`\n]+)`', page.read_text(encoding='utf-8')):
      # `ttt-jax COMMAND --help` and the like are no commands.
      if not re.search(r'\b[A-Z]{3,}\b|\.\.\.', text) and '--help' not in text:
        found.setdefault(shlex.join(shlex.split(text)), name(page))
  return found


def in_backticks() -> list[tuple[str, str]]:
  """(page, text) of everything in single backticks outside fenced blocks."""
  found = []
  for page in PAGES:
    prose = re.sub(r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.M | re.S)
    found += [(name(page), text) for text in re.findall(r'`([^`\n]+)`', prose)]
  return found
