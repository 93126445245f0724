"""One HTML page about a run: scores, sounds, curves, speed, staircase, configuration.

Reads what the other commands left in the workdir (config.json, metrics.jsonl,
evaluation.json with its sounds, the prepared rows) and writes WORKDIR/report.html, which
holds its pictures and sounds inside itself, and the pictures once more as
WORKDIR/report/*.png. What is missing is said in a sentence in its place. The folder of a sweep
gets a page that shows its members side by side (report_sweep.py).
"""

import base64
from collections.abc import Iterable, Sequence
import html
import mimetypes
import os
import pathlib
import string
from typing import Any

import numpy as np

from ttt_jax import config as config_lib
from ttt_jax.errors import UserError
from ttt_jax.evaluate.summary import value_text
from ttt_jax.runs import sweep
from ttt_jax.runs.report import mask_plot, plots, speed, sweep_page
from ttt_jax.storage import files
from ttt_jax.system.progress import duration
from ttt_jax.train import metrics

PAGE = 'report.html'
SAMPLES_PER_TASK = 6  # sounds are 0.1 MB each; the rest stays in WORKDIR/samples

TASKS = {
    'audio_qa': ('Spoken questions', 'A spoken question in, a written and spoken answer out.'),
    'tts': ('Reading aloud', 'Text in, the same text spoken out.'),
    'asr': ('Transcription', 'Speech in, its transcript out, spoken again.'),
    'text_chat': ('Text chat', 'Text in, text out.'),
}

# (metric, title with unit, colour, whether it is noisy); eval/METRIC gives held-out points
CURVES = (
    ('text_nll', 'Text: nats per text token', plots.TEXT, True),
    ('masked_nll', 'Audio: nats per masked audio token', plots.AUDIO, True),
    ('ar', 'Loss, text term: nats per text token', plots.TEXT, True),
    ('diffusion', 'Loss, audio term: nats per audio token', plots.AUDIO, True),
    ('loss', 'Loss: both terms', plots.INK, True),
    ('useful_tokens_per_second', 'Throughput: useful tokens per second', plots.SOFT, True),
    ('grad_norm', 'Gradient norm, before clipping', plots.SOFT, True),
    ('learning_rate', 'Learning rate', plots.SOFT, False),
)


def report(workdir: str | os.PathLike) -> pathlib.Path:
  """Write the page.

  Args:
    workdir: folder of a run or of a sweep.

  Returns:
    Path of the page.

  Raises:
    UserError: there is no such folder, or a file in it is malformed.
  """
  workdir = pathlib.Path(workdir)
  if not workdir.is_dir():
    raise UserError(f'workdir {workdir} does not exist; name the folder of a run.')
  template = pathlib.Path(__file__).with_name('page.html').read_text(encoding='utf-8')
  if sweep.is_sweep(workdir):
    return _write(workdir, sweep_page.page(workdir, template))
  config = _read_config(workdir)
  lines = metrics.read(workdir) if (workdir / metrics.FILE).is_file() else []
  evaluation = files.read_json(workdir / 'evaluation.json')
  name = config.name if config else workdir.resolve().name
  page = string.Template(template).substitute(
      title=_text(f'Text-to-Talk run “{name}”'),
      lead=_text('One Transformer that writes text token by token and speaks by diffusion: what '
                 'it learned, how well, and how it sounds.'),
      facts=_facts(lines),
      scores=_scores(evaluation),
      samples=_samples(evaluation, workdir),
      curves=_curves(lines, workdir),
      speed=speed.section(lines),
      staircase=_staircase(config, workdir),
      configuration=_configuration(config),
      workdir=_text(workdir.name or str(workdir)))
  return _write(workdir, page)


def _write(workdir: pathlib.Path, page: str) -> pathlib.Path:
  path = workdir / PAGE
  files.write_text(path, page)
  return path


# -- inputs -------------------------------------------------------------------------


def _read_config(workdir: pathlib.Path) -> config_lib.Config | None:
  values = files.read_json(workdir / 'config.json')
  return config_lib.from_dict(config_lib.Config, values) if values else None


# -- sections -----------------------------------------------------------------------


def _facts(lines: Sequence[dict]) -> str:
  if not lines:
    return ''
  facts = [('steps', f'{lines[-1]["step"]:,}')]
  times = np.array([line['time'] for line in lines])
  if len(times) > 2:
    gaps = np.diff(times)  # a pause between two runs is no training time
    facts.append(('of training', duration(gaps[gaps < 20 * np.median(gaps) + 60].sum())))
  for name, label, form in (('useful_tokens_per_second', 'useful tokens per second', '{:,.0f}'),
                            ('text_nll', 'nats per text token', '{:.3f}'),
                            ('masked_nll', 'nats per masked audio token', '{:.2f}')):
    values = np.array([line[name] for line in lines if name in line])
    values = values[np.isfinite(values)]
    if len(values):
      last = len(values) if name.endswith('per_second') else max(len(values) // 20, 5)
      middle = np.median(values[-last:])  # speed: of the whole run; quality: at its end
      facts.append((label, form.format(middle)))
  return '<dl class="facts">' + ''.join(
      f'<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>' for label, value in facts
  ) + '</dl>'


def _scores(evaluation: dict[str, Any]) -> str:
  if not evaluation.get('table'):
    return _missing('There is no evaluation yet; <code>ttt-jax evaluate</code> makes one.')
  rows = ''.join(
      f'<tr><th scope="row"{_indent(label)}>{_text(label.strip())}</th>'
      f'<td class="number">{_text(value_text(value))}</td><td class="note">{_text(note)}</td></tr>'
      for label, value, note in evaluation['table'])
  return ('<table class="scores stack"><thead><tr><th scope="col">Measure</th>'
          '<th scope="col" class="number">Result</th><th scope="col">What it means</th></tr>'
          f'</thead><tbody>{rows}</tbody></table>') + _ceilings(evaluation.get('summary', {}))


def _ceilings(summary: dict[str, float]) -> str:
  """Word error rates of the recogniser on three voices, side by side."""
  kinds = (('reference', 'Original voice'), ('roundtrip', 'Through the codec'),
           ('generated', 'The model'))
  rows = ''
  for task, (title, _) in TASKS.items():
    found = {kind: summary.get(f'{task}_wer_{kind}') for kind, _ in kinds}
    if found['generated'] is not None:
      rows += f'<tr><th scope="row">{title}</th>' + ''.join(
          f'<td class="number" data-label="{label}">{_percent(found[kind])}</td>'
          for kind, label in kinds) + '</tr>'
  if not rows:
    return ''
  head = ''.join(f'<th scope="col" class="number">{label}</th>' for _, label in kinds)
  return ('<h3>How well the voice is understood</h3><p class="note">Word error rate of an '
          'independent recogniser. The first two columns are ceilings: the recogniser’s own '
          'errors, and what the codec adds. The model can at best come close to the second.</p>'
          f'<table class="scores stack"><thead><tr><th scope="col">Task</th>{head}</tr></thead>'
          f'<tbody>{rows}</tbody></table>')


def _percent(share: float | None) -> str:
  return '–' if share is None else f'{100 * share:.1f} %'


def _indent(label: str) -> str:
  return ' class="sub"' if label.startswith(' ') else ''  # a part of the row above, or its ceiling


COLUMNS = (('question', 'Question'), ('reference', 'Reference'),
           ('roundtrip', 'Through the codec'), ('generated', 'The model'))


def _samples(evaluation: dict[str, Any], workdir: pathlib.Path) -> str:
  samples = evaluation.get('samples')
  if not samples:
    return _missing('There are no answers to hear yet; <code>ttt-jax evaluate</code> makes some.')
  parts = ['<p>The first evaluated records of each task, in their order, not picked. “Through the '
           'codec” is the reference encoded and decoded again: no model can sound better than '
           'that. “Heard” is what an independent recogniser understood of the model’s voice.</p>']
  tasks = [task for task in TASKS if any(s['task'] == task for s in samples)]
  tasks += sorted({s['task'] for s in samples} - set(tasks))
  for task in tasks:
    mine = [sample for sample in samples if sample['task'] == task]
    title, blurb = TASKS.get(task, (task, ''))
    right = sum(bool(sample.get('correct')) for sample in mine)
    shown = mine[:SAMPLES_PER_TASK]
    count = f'Text right in {right} of {len(mine)}' + (
        f'; the first {len(shown)} are shown.' if len(shown) < len(mine) else '.')
    parts.append(f'<h3>{_text(title)}</h3><p class="note">{_text(blurb)} {count}</p>')
    parts.append(_sample_table(shown, workdir))
  return ''.join(parts)


def _sample_table(samples: Sequence[dict], workdir: pathlib.Path) -> str:
  used = [(key, label) for key, label in COLUMNS
          if any(s.get(f'{key}_text') or (s.get('audio') or {}).get(key) for s in samples)]
  head = ''.join(f'<th scope="col">{label}</th>' for _, label in used)
  rows = []
  for sample in samples:
    cells = ''.join(f'<td data-label="{label}">{_sample_cell(sample, key, workdir)}</td>'
                    for key, label in used)
    rows.append(f'<tr><th scope="row" class="id">{_text(sample["id"])}</th>{cells}</tr>')
  return ('<table class="samples stack"><thead><tr><th scope="col" class="id">Record</th>'
          f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>')


def _sample_cell(sample: dict, key: str, workdir: pathlib.Path) -> str:
  parts = []
  sound = (sample.get('audio') or {}).get(key)
  if sound:
    parts.append(_player(workdir / sound, f'{key}, {sample["id"]}'))
  if sample.get(f'{key}_text'):
    parts.append(f'<div class="said">{_text(sample[f"{key}_text"])}</div>')
  if key == 'generated':
    if sample.get('heard_text') is not None:
      parts.append(f'<div class="heard">heard: {_text(sample["heard_text"] or "(nothing)")}</div>')
    if sample.get('correct') is not None:
      parts.append('<div class="right">✓ text right</div>' if sample['correct']
                   else '<div class="wrong">✗ text wrong</div>')
  return ''.join(parts) or '<span class="note">–</span>'


def _curves(lines: Sequence[dict], workdir: pathlib.Path) -> str:
  drawn = []
  for name, title, color, noisy in CURVES:
    path = workdir / 'report' / f'{name}.png'
    if plots.curve(path, lines, name, title, color=color, heldout=f'eval/{name}',
                     smoothed=noisy):
      drawn.append(f'<figure>{_image(path, f"{title}, against the training steps")}</figure>')
  if not drawn:
    return _missing('There are no measurements yet; <code>ttt-jax train</code> writes them.')
  return ('<p>Text and audio come from the same forward pass. The first two curves are plain means '
          'over the tokens that were scored. The terms of the loss are means over records, those '
          'without audio (or with their audio kept clean) counting as zero; the audio term weighs '
          'each masked token by the inverse of its probability to be masked, which makes it a '
          'bound, and noisy.</p>'
          f'<div class="figures">{"".join(drawn)}</div>')


def _staircase(config: config_lib.Config | None, workdir: pathlib.Path) -> str:
  data = None if config is None else workdir / config.data.path
  if data is None or not (data / 'manifest.json').is_file():
    return _missing('There are no prepared rows to draw; <code>ttt-jax prepare</code> makes them.')
  whole, part = (workdir / 'report' / f'staircase_{name}.png' for name in ('record', 'part'))
  length = mask_plot.draw(data, config, whole, part)
  if not length:
    return _missing('No row of the prepared set holds a spoken answer to draw.')
  return (
      '<p>Each row is a token that reads, each column a token that may be read. Text reads '
      'what came before it. Audio reads, besides, the whole span it stands in, so that its '
      'codes can be filled in any order. Nothing reads a later span, and nothing reads another '
      'record of the packed row.</p>'
      '<figure class="wide">'
      f'{_image(whole, "Mask of one whole record, a staircase whose steps are spans")}'
      f'<figcaption>One training record, {length} tokens.</figcaption></figure>'
      '<figure class="wide"><div class="scroll" tabindex="0">'
      f'{_image(part, "The same mask enlarged around the start of a spoken answer")}</div>'
      '<figcaption>The same record around its spoken answer, token by token; a number is an '
      'audio code.</figcaption></figure>')


def _configuration(config: config_lib.Config | None) -> str:
  if config is None:
    return _missing('There is no config.json in this folder; the other commands write it.')
  mine, default = (config_lib.flat(c) for c in (config, config_lib.Config()))
  changed = {key: value for key, value in mine.items() if value != default[key]}
  return ('<p>Settings that differ from the defaults of '
          '<code>ttt_jax/config/settings.py</code>:</p>'
          + _settings(changed.items())
          + '<details><summary>All settings</summary>' + _settings(mine.items()) + '</details>')


def _settings(items: Iterable[tuple[str, Any]]) -> str:
  rows = ''.join(f'<tr><td>{_text(key)}</td><td>{_setting(value)}</td></tr>'
                 for key, value in items)
  return f'<table class="config stack"><tbody>{rows}</tbody></table>'


def _setting(value: Any) -> str:
  if isinstance(value, list) and any(isinstance(item, dict) for item in value):
    usual = config_lib.to_dict(config_lib.Source()) | config_lib.to_dict(config_lib.Stage())
    return '<br>'.join(_text(', '.join(
        f'{k}={v!r}' for k, v in item.items()
        if v != usual.get(k) or k == 'path' or k == 'split' and not item.get('mix')))
                       for item in value)
  return _text(repr(value))


# -- pieces -------------------------------------------------------------------------


def _text(value: Any) -> str:
  return html.escape(str(value))


def _missing(sentence: str) -> str:
  return f'<p class="missing">{sentence}</p>'


def _data_uri(path: pathlib.Path) -> str:
  kind = mimetypes.guess_type(path.name)[0] or 'application/octet-stream'
  kind = 'audio/wav' if kind == 'audio/x-wav' else kind
  return f'data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}'


def _image(path: pathlib.Path, alt: str) -> str:
  return f'<img src="{_data_uri(path)}" alt="{html.escape(alt)}">'


def _player(path: pathlib.Path, label: str) -> str:
  if not path.is_file():
    return f'<div class="note">{_text(path.name)} is missing</div>'
  return (f'<audio controls preload="metadata" aria-label="{html.escape(label)}" '
          f'src="{_data_uri(path)}"></audio>')
