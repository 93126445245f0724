"""A slot's cache serves the next turn of its conversation."""

import numpy as np
import pytest

from tests.generate.test_engine import MODEL, V, quick_compiles, random_model  # noqa: F401
from tests.reference import batches
from ttt_jax.config import GenerateConfig
from ttt_jax.generate import engine, prefix_cache

TWO_WAY = [9, 9, V.code_start, V.code_start + 1, 8, 7]


def text(ids, mode='hybrid', prompt_audio='bidirectional'):
  return prefix_cache.of_prompt(V, np.array(ids), mode, prompt_audio)


def test_what_tokens_see():
  assert text(TWO_WAY).end.tolist() == [1, 2, 4, 4, 5, 6]
  assert text(TWO_WAY, prompt_audio='causal').end.tolist() == [1, 2, 3, 4, 5, 6]
  answer = np.array([3, V.code_start, V.end_of_last, 5])
  cached = prefix_cache.with_answer(V, text([1, 2]), answer, 5, 'hybrid')
  assert cached.ids.tolist() == [1, 2, 3, V.code_start, V.end_of_last]
  assert cached.end.tolist() == [1, 2, 3, 5, 5]


@pytest.mark.parametrize('other, limit, expected', [
    (TWO_WAY, 99, 6), (TWO_WAY, 5, 5), (TWO_WAY, 3, 2), (TWO_WAY[:3] + [5], 99, 2),
    ([9, 8], 99, 1), ([1], 99, 0), ([], 99, 0)])
def test_what_is_shared(other, limit, expected):
  assert prefix_cache.shared(text(TWO_WAY), text(other), limit) == expected
  assert prefix_cache.shared(text(TWO_WAY, prompt_audio='causal'), text(TWO_WAY), 99) == 2


@pytest.mark.parametrize('prompt_audio', ['bidirectional', 'causal'])
def test_a_conversation_is_read_once(prompt_audio):
  rng = np.random.default_rng(5)
  params = random_model(rng, end=2.0)
  config = GenerateConfig(block=4, steps=2, slots=2, max_span=12, max_tokens=120)
  lasting = engine.Engine(MODEL, params, V, config, prompt_audio=prompt_audio)
  talks = [np.array(batches.text(rng, 2) + batches.user_turn(rng, spoken=True) + [V.im_start, 1])
           for _ in range(2)]
  spoke = 0
  for turn in range(3):
    before = lasting.read
    fresh = engine.Engine(MODEL, params, V, config, prompt_audio=prompt_audio)
    limits = [GenerateConfig(block=4, steps=2, slots=2, max_span=12,
                             max_tokens=min(120, talk.size + 25)) for talk in talks]
    # In reverse order, so that slots must be found by their cached tokens.
    answers = lasting.generate(talks[::-1], limits[::-1], [1, 0])[::-1]
    expected = fresh.generate(talks, limits)
    for one, other in zip(answers, expected):
      np.testing.assert_array_equal(one.ids, other.ids)
      spoke += len(one.spans)
    if turn and prompt_audio == 'bidirectional':
      assert lasting.read - before < fresh.read - 2 * 12, 'only new tokens may be read'
    new = [np.array(batches.user_turn(rng, spoken=turn == 0) + [V.im_start, 1]) for _ in talks]
    talks = [np.concatenate([talk, answer.ids, more])
             for talk, answer, more in zip(talks, answers, new)]
  assert spoke > 2
