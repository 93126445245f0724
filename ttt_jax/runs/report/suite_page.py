"""The page of a benchmark: its numbers, and its items with players; beside the files of results."""

from collections.abc import Mapping
import html
import json
import os
import pathlib
from typing import Any

from ttt_jax.evaluate.suites import results
from ttt_jax.storage import files, owned

PAGE = 'index.html'
_SIGN = '<code>ttt-jax evaluate --suite</code>'  # in every page
_ITEMS = 200  # in the page; all are in the files of results


def write(folder: str | os.PathLike, summary: Mapping[str, Any]) -> pathlib.Path:
  """Write OUT/index.html and return its path.

  Args:
    folder: of the results.
    summary: as `evaluate --suite` returned it.

  Raises:
    UserError: it cannot be written, or an index.html there is not ours.
  """
  folder = pathlib.Path(folder)
  owned.check_text(folder / PAGE, _SIGN, '--out')
  template = pathlib.Path(__file__).with_name('page.html').read_text(encoding='utf-8')
  title = _text(f'{summary["suite"]}: {pathlib.Path(summary["data"]).name}')
  numbers = _text('\n'.join(summary['table']))
  sections = ''.join(_section(folder, one) for one in summary['checkpoints'])
  page = (template[:template.index('<main>')].replace('$title', title)
          + f'<main><header><h1>{title}</h1></header><section><h2>Results</h2><pre>{numbers}</pre>'
          f'</section>{sections}<footer>Written by {_SIGN}; all numbers are in '
          f'<code>{results.SUMMARY}</code>.</footer></main></body></html>\n')
  files.write_text(folder / PAGE, page)
  return folder / PAGE


def _section(folder: pathlib.Path, checkpoint: Mapping[str, Any]) -> str:
  """The items of one checkpoint; those with speech first."""
  label = checkpoint['label']
  lines = _lines(folder / f'{label}.jsonl')
  lines.sort(key=lambda line: (not line['audio'], line['number']))
  shown = lines[:_ITEMS]
  note = '' if len(shown) == len(lines) else (
      f'<p class="note">{len(shown):,} of {len(lines):,} items; all are in '
      f'<code>{_text(label)}.jsonl</code>.</p>')
  rows = ''.join(_row(folder, line) for line in shown)
  return (f'<section><h2>{_text(label)}</h2>{note}<table class="samples stack"><thead><tr>'
          '<th scope="col" class="id">Item</th><th scope="col">References</th>'
          '<th scope="col">Text</th><th scope="col">Speech</th><th scope="col">Counts</th></tr>'
          f'</thead><tbody>{rows}</tbody></table></section>')


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  found = []
  for line in path.read_text(encoding='utf-8').split('\n')[1:]:
    try:
      value = json.loads(line)
    except ValueError:
      continue  # cut off when the process ended
    if isinstance(value, dict) and {'number', 'audio', 'counts'} <= value.keys():
      found.append(value)
  return found


def _row(folder: pathlib.Path, line: Mapping[str, Any]) -> str:
  counts = ', '.join(f'{name} {value:g}' for name, value in line['counts'].items() if value)
  cells = [('References', '<br>'.join(map(_text, line['references'][:5]))),
           ('Text', _text(line.get('problem') or line['text'])),
           ('Speech', _player(folder, line['audio'], line['id']) + (
               f'<div class="heard">{_text(line["heard"])}</div>' if line['heard'] else '')),
           ('Counts', f'<span class="note">{_text(counts)}</span>')]
  return (f'<tr><th scope="row" class="id">{_text(line["id"])}</th>' + ''.join(
      f'<td data-label="{label}" class="transcript">{cell}</td>' for label, cell in cells)
          + '</tr>')


def _player(folder: pathlib.Path, path: str | None, name: str) -> str:
  """A player of a file in the folder; '' for anything else."""
  if not path or not (folder / path).resolve().is_relative_to(folder.resolve()):
    return ''
  return (f'<audio controls preload="none" aria-label="{_text(name)}" '
          f'src="{_text(path)}"></audio>')


def _text(value: Any) -> str:
  return html.escape(str(value))
