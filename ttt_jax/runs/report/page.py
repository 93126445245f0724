"""`ttt-jax report`: an HTML page about a run: scores, audio, curves, speed, mask, configuration.

Reads the files that the other commands wrote into the workdir (config.json, metrics.jsonl,
evaluation.json with its audio, the prepared rows) and writes WORKDIR/report.html, with images and
audio embedded, and the images also as WORKDIR/report/*.png. A missing input is named in its
section. For a sweep, the page compares its members (sweep_page.py).
"""

from collections.abc import Iterable, Sequence
import html
import os
import pathlib
import string
from typing import Any

import numpy as np

from ttt_jax import config as config_lib
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.evaluate import summary as summary_file
from ttt_jax.evaluate.summary import value_text
from ttt_jax.runs import status, sweep
from ttt_jax.runs.report import mask_plot, plots, speed, sweep_page
from ttt_jax.runs.report.sounds import Sounds, data_uri
from ttt_jax.storage import files, owned
from ttt_jax.system.progress import duration
from ttt_jax.train import metrics

PAGE, PICTURES = 'report.html', 'report'
_SIGN = '<code>ttt-jax report</code>'  # in every page
SAMPLES_PER_TASK = 6  # embedded, 0.1 MB each; the others stay in WORKDIR/samples

TASKS = {
    'audio_qa': ('Spoken questions', 'Spoken question in, text and spoken answer out.'),
    'tts': ('Text to speech', 'Text in, the same text as speech out.'),
    'asr': ('Speech recognition', 'Speech in, its transcript out, as text and speech.'),
    'text_chat': ('Text chat', 'Text in, text out.'),
    'audio_chat': ('Spoken chat', 'Speech in, text and speech out.'),
    'aac': ('Audio captioning', 'Sound in, its description out.'),
    'sec': ('Sound events', 'Sound in, the name of the event out.'),
    'asc': ('Acoustic scenes', 'Sound in, the name of the place out.'),
    'other': ('Records without a task', ''),
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
  """Write the page of a run or a sweep.

  Args:
    workdir: folder of a run or of a sweep.

  Returns:
    Path of the page.

  Raises:
    UserError: there is no such folder, it cannot be written, a file in it is malformed, or one
      that would be replaced is not ours.
  """
  workdir = pathlib.Path(workdir)
  if not workdir.is_dir():
    raise UserError(f'workdir {workdir} does not exist; name the folder of a run.')
  pictures = _pictures(workdir)
  template = pathlib.Path(__file__).with_name('page.html').read_text(encoding='utf-8')
  if sweep.is_sweep(workdir):
    return _write(workdir, sweep_page.page(workdir, template), pictures)
  config = _read_config(workdir)
  lines = metrics.read(workdir) if (workdir / metrics.FILE).is_file() else []
  evaluation = summary_file.read(workdir)
  name = config.name if config else workdir.resolve().name
  page = string.Template(template).substitute(
      title=_text(f'Text-to-Talk run “{name}”'),
      lead=_text('One Transformer that generates text autoregressively and audio by diffusion: '
                 'scores, audio samples, training curves and speed.'),
      facts=_facts(lines),
      scores=_scores(evaluation),
      samples=_samples(evaluation, workdir, config),
      curves=_curves(lines, workdir),
      speed=speed.section(lines, status.read(workdir)),
      staircase=_staircase(config, workdir),
      configuration=_configuration(config),
      workdir=_text(workdir.name or str(workdir)))
  return _write(workdir, page, pictures)


def _pictures(workdir: pathlib.Path) -> owned.Output:
  """The folder of the images, once it is known that they and the page may be written."""
  owned.check_text(workdir / PAGE, _SIGN)
  names = [f'{name}.png' for name in (
      *(curve[0] for curve in CURVES), *(f'sweep_{curve[0]}' for curve in sweep_page.CURVES),
      'staircase_record', 'staircase_part')]
  # Before there were markers, the page beside the folder was the proof.
  out = owned.Output(workdir / PICTURES, 'pictures', '--workdir',
                     lambda _: names if (workdir / PAGE).is_file() else ())
  out.claim(*names)
  return out


def _write(workdir: pathlib.Path, page: str, pictures: owned.Output) -> pathlib.Path:
  path = workdir / PAGE
  files.write_text(path, page)
  pictures.finish()
  return path


# -- inputs -------------------------------------------------------------------------


def _read_config(workdir: pathlib.Path) -> config_lib.Config | None:
  path = workdir / 'config.json'
  return config_lib.load(path) if path.exists() else None


# -- sections -----------------------------------------------------------------------


def _facts(lines: Sequence[dict]) -> str:
  if not lines:
    return ''
  facts = [('steps', f'{lines[-1]["step"]:,}')]
  times = np.array([line['time'] for line in lines if 'time' in line])
  if len(times) > 2:
    gaps = np.diff(times)  # a pause between two starts is no training time
    facts.append(('of training', duration(gaps[gaps < 20 * np.median(gaps) + 60].sum())))
  for name, label, form in (('useful_tokens_per_second', 'useful tokens per second', '{:,.0f}'),
                            ('text_nll', 'nats per text token', '{:.3f}'),
                            ('masked_nll', 'nats per masked audio token', '{:.2f}')):
    values = np.array([line[name] for line in lines if name in line])
    values = values[np.isfinite(values)]
    if len(values):
      last = len(values) if name.endswith('per_second') else max(len(values) // 20, 5)
      # The speed is a median over the full run, a loss over its last twentieth.
      facts.append((label, form.format(np.median(values[-last:]))))
  return '<dl class="facts">' + ''.join(
      f'<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>' for label, value in facts
  ) + '</dl>'


def _scores(evaluation: dict[str, Any]) -> str:
  if not evaluation.get('table'):
    return _missing('Not evaluated yet; run <code>ttt-jax evaluate</code>.')
  rows = ''.join(
      f'<tr><th scope="row"{_indent(label)}>{_text(label.strip())}</th>'
      f'<td class="number">{_text(value_text(value))}</td><td class="note">{_text(note)}</td></tr>'
      for label, value, note in evaluation['table'])
  return ('<table class="scores stack"><thead><tr><th scope="col">Measure</th>'
          '<th scope="col" class="number">Result</th><th scope="col">Meaning</th></tr>'
          f'</thead><tbody>{rows}</tbody></table>') + _ceilings(evaluation.get('summary', {}))


def _ceilings(summary: dict[str, float]) -> str:
  """Word error rates of the recogniser on original, codec and generated speech, side by side."""
  kinds = (('reference', 'Original recording'), ('roundtrip', 'Encoded and decoded'),
           ('generated', 'Generated'))
  rows = ''
  for task, (title, _) in TASKS.items():
    found = {kind: summary.get(f'{task}_wer_{kind}') for kind, _ in kinds}
    if all(value is None or isinstance(value, (int, float)) for value in found.values()) and (
        found['generated'] is not None):
      rows += f'<tr><th scope="row">{title}</th>' + ''.join(
          f'<td class="number" data-label="{label}">{_percent(found[kind])}</td>'
          for kind, label in kinds) + '</tr>'
  if not rows:
    return ''
  head = ''.join(f'<th scope="col" class="number">{label}</th>' for _, label in kinds)
  return ('<h3>Intelligibility of the speech</h3><p class="note">Word error rate of an '
          'independent recogniser. The first two columns are lower bounds: the errors of the '
          'recogniser, and those with the codec added. The model can at best reach the second.</p>'
          f'<table class="scores stack"><thead><tr><th scope="col">Task</th>{head}</tr></thead>'
          f'<tbody>{rows}</tbody></table>')


def _percent(share: float | None) -> str:
  return '–' if share is None else f'{100 * share:.1f} %'


def _indent(label: str) -> str:
  return ' class="sub"' if label.startswith(' ') else ''  # details the row above


COLUMNS = (('question', 'Question'), ('reference', 'Reference'),
           ('roundtrip', 'Encoded and decoded'), ('generated', 'Generated'))


def _samples(evaluation: dict[str, Any], workdir: pathlib.Path,
             config: config_lib.Config | None) -> str:
  samples = evaluation.get('samples')
  if not samples:
    return _missing('There are no audio samples yet; run <code>ttt-jax evaluate</code>.')
  parts = ['<p>The first evaluated records of each task, not selected. “Encoded and decoded” is '
           'the reference after the codec, an upper bound on the audio quality of the model. '
           '“Recognised” is what an independent recogniser transcribed from the generated '
           'speech.</p>']
  sounds = Sounds(workdir, config.data.path if config else 'data')
  tasks = [task for task in TASKS if any(s['task'] == task for s in samples)]
  tasks += sorted({s['task'] for s in samples} - set(tasks))
  for task in tasks:
    mine = [sample for sample in samples if sample['task'] == task]
    title, blurb = TASKS.get(task or 'other', (task, ''))
    correct = sum(bool(sample.get('correct')) for sample in mine)
    shown = mine[:SAMPLES_PER_TASK]
    count = f'Text correct in {correct} of {len(mine)}' + (
        f'; the first {len(shown)} are shown.' if len(shown) < len(mine) else '.')
    parts.append(f'<h3>{_text(title)}</h3><p class="note">{_text(blurb)} {count}</p>')
    parts.append(_sample_table(shown, sounds))
  return ''.join(parts)


def _sample_table(samples: Sequence[dict], sounds: Sounds) -> str:
  used = [(key, label) for key, label in COLUMNS
          if any(s.get(f'{key}_text') or (s.get('audio') or {}).get(key) for s in samples)]
  head = ''.join(f'<th scope="col">{label}</th>' for _, label in used)
  rows = []
  for sample in samples:
    cells = ''.join(f'<td data-label="{label}">{_sample_cell(sample, key, sounds)}</td>'
                    for key, label in used)
    rows.append(f'<tr><th scope="row" class="id">{_text(sample["id"])}</th>{cells}</tr>')
  return ('<table class="samples stack"><thead><tr><th scope="col" class="id">Record</th>'
          f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>')


def _sample_cell(sample: dict, key: str, sounds: Sounds) -> str:
  parts = []
  sound = (sample.get('audio') or {}).get(key)
  if sound:
    parts.append(sounds.player(sound, f'{key}, {sample["id"]}'))
  if sample.get(f'{key}_text'):
    parts.append(f'<div class="transcript">{_text(sample[f"{key}_text"])}</div>')
  if key == 'generated':
    if sample.get('heard_text') is not None:
      recognised = _text(sample['heard_text'] or '(nothing)')
      parts.append(f'<div class="heard">recognised: {recognised}</div>')
    if sample.get('correct') is not None:
      parts.append('<div class="right">✓ text correct</div>' if sample['correct']
                   else '<div class="wrong">✗ text incorrect</div>')
  return ''.join(parts) or '<span class="note">–</span>'


def _curves(lines: Sequence[dict], workdir: pathlib.Path) -> str:
  drawn = []
  for name, title, color, noisy in CURVES:
    path = workdir / PICTURES / f'{name}.png'
    if plots.curve(path, lines, name, title, color=color, heldout=f'eval/{name}',
                     smoothed=noisy):
      drawn.append(f'<figure>{_image(path, f"{title}, against the training steps")}</figure>')
  if not drawn:
    return _missing('There are no metrics yet; run <code>ttt-jax train</code>.')
  return ('<p>Text and audio losses come from the same forward pass. The first two curves are '
          'means over the scored tokens. The terms of the loss are means over records, where a '
          'record without (noisy) audio counts as zero; the audio term weighs each masked token '
          'by the inverse of its masking probability, which makes it a bound, and noisy.</p>'
          f'<div class="figures">{"".join(drawn)}</div>')


def _staircase(config: config_lib.Config | None, workdir: pathlib.Path) -> str:
  if config is None or not (store.locate(workdir, config.data.path) / 'manifest.json').is_file():
    return _missing('There are no prepared rows; run <code>ttt-jax prepare</code>.')
  full, detail = (workdir / PICTURES / f'staircase_{name}.png' for name in ('record', 'part'))
  length = mask_plot.draw(store.locate(workdir, config.data.path), config, full, detail)
  if not length:
    return _missing('The prepared data has no spoken answer to draw.')
  return (
      '<p>Rows are queries, columns are keys. Text attends to earlier positions only. Audio '
      'attends, in addition, to its complete span, so that codes can be predicted in any order. '
      'No token attends to a later span or to another record of the packed row.</p>'
      '<figure class="wide">'
      f'{_image(full, "Attention mask of one record, a staircase whose steps are spans")}'
      f'<figcaption>One training record, {length} tokens.</figcaption></figure>'
      '<figure class="wide"><div class="scroll" tabindex="0">'
      f'{_image(detail, "Part of the same mask around the start of a spoken answer")}</div>'
      '<figcaption>Part of the same record around its spoken answer, token by token; numbers '
      'are audio codes.</figcaption></figure>')


def _configuration(config: config_lib.Config | None) -> str:
  if config is None:
    return _missing('This folder has no config.json.')
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


# -- helpers ------------------------------------------------------------------------


def _text(value: Any) -> str:
  return html.escape(str(value))


def _missing(sentence: str) -> str:
  return f'<p class="missing">{sentence}</p>'


def _image(path: pathlib.Path, alt: str) -> str:
  return f'<img src="{data_uri(path)}" alt="{html.escape(alt)}">'

