"""Suite 'captioning': rows of one sound are one item."""

import json

import numpy as np
import pytest

from tests import small_run
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import captioning, results
from ttt_jax.evaluate.suites.suite import Reply, Result


def write(path, *rows):
  path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n')
  return path


def test_captions_of_one_sound_are_references_of_one_item(tmp_path):
  data = write(tmp_path / 'a.jsonl', *(
      {'id': f'{name}-{i}', 'audio': f'{name}.wav', 'caption': text}
      for name, texts in (('a', ['a dog barks', 'barking', 'a dog barks']), ('b', ['rain falls']))
      for i, text in enumerate(texts, 1)))
  suite = captioning.Captioning(small_run.config())
  first, second = suite.items(data)
  assert (first.id, first.references) == ('a', ('a dog barks', 'barking'))
  assert second.references == ('rain falls',) and second.record.task == 'aac'
  rows = []
  for item, text in ((first, 'a dog barks'), (second, 'a dog barks')):
    score = suite.score(item, Reply(text, np.zeros(0, np.int32), None))
    rows.append(Result(len(rows), item.id, '', score.counts, {}))
  assert rows[0].counts['cider_d'] > rows[1].counts['cider_d'] == 0
  found = results.numbers([suite.metrics(rows)], [rows], draws=50)
  assert found.value['rouge_l'][0] == pytest.approx(0.5)
  assert found.value['bleu_1'][0] == pytest.approx(0.5, abs=1e-6)
  assert found.value['words'][0] == 3


def test_clotho(tmp_path):
  names = [f'caption_{i}' for i in range(1, 6)]
  (tmp_path / 'clotho_captions_evaluation.csv').write_text(
      f'file_name,{",".join(names)}\nRain 1.wav,{",".join(f"rain {n}" for n in names)}\n')
  (tmp_path / 'evaluation').mkdir()
  (tmp_path / 'evaluation' / 'Rain 1.wav').write_bytes(b'')
  (item,) = captioning.Captioning(small_run.config()).items(tmp_path)
  assert item.references == tuple(f'rain {name}' for name in names)
  (part,) = item.record.audio()
  assert part.source == str(tmp_path / 'evaluation' / 'Rain 1.wav')


def test_a_caption_without_words_is_one_sentence(tmp_path):
  data = write(tmp_path / 'a.jsonl', {'audio': 'a.wav', 'caption': '...'})
  with pytest.raises(UserError, match="a.jsonl:1: the caption '...' has no words"):
    captioning.Captioning(small_run.config()).items(data)
