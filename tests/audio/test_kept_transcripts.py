import json

import numpy as np
import pytest

from ttt_jax.audio.kept_transcripts import KeptTranscripts
from ttt_jax.audio.recogniser import RATE, Recogniser
from ttt_jax.errors import UserError


class Counting(Recogniser):
  """Hears the number of its samples, and counts what it was asked."""
  name = 'counting'

  def __init__(self, model='a'):
    self.asked, self._model = 0, model

  def describe(self):
    return {'judge': self.name, 'model': self._model}

  def _recognise(self, sounds, language):
    self.asked += len(sounds)
    return [f'{language}{len(sound)}' for sound in sounds]


def sound(samples):
  return np.full(samples, 0.5, np.float32), RATE


def test_equal_speech_is_recognised_once_by_all_evaluations(tmp_path):
  path = tmp_path / 'transcripts.jsonl'
  first = Counting()
  assert KeptTranscripts(first, path).transcribe_all([sound(100), sound(200), sound(100)]) == [
      '100', '200', '100']
  assert first.asked == 2
  second = Counting()
  kept = KeptTranscripts(second, path)
  assert kept.transcribe_all([sound(200), sound(300)]) == ['200', '300']
  assert kept.transcribe(*sound(200), language='en') == 'en200'
  assert second.asked == 2
  assert KeptTranscripts(other := Counting('b'), path).transcribe(*sound(200)) == '200'
  assert other.asked == 1


def test_a_line_that_was_cut_off_is_recognised_again(tmp_path):
  path = tmp_path / 'transcripts.jsonl'
  KeptTranscripts(Counting(), path).transcribe(*sound(100))
  path.write_text(path.read_text()[:-9])
  judge = Counting()
  assert KeptTranscripts(judge, path).transcribe(*sound(100)) == '100' and judge.asked == 1


@pytest.mark.parametrize('line', ['[]', '{"key": 1, "text": "a"}', 'text'])
def test_a_file_of_something_else_is_refused(tmp_path, line):
  path = tmp_path / 'notes.jsonl'
  path.write_text(json.dumps({'key': 'a', 'text': 'b'}) + f'\n{line}\n')
  with pytest.raises(UserError, match=r'notes\.jsonl, line 2: not a transcript'):
    KeptTranscripts(Counting(), path)
