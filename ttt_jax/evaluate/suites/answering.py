"""Items to replies: audio is encoded ahead of the engine, which decodes many requests together."""

from collections.abc import Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools

import jax
import numpy as np

from ttt_jax.audio.asr_judges import Recogniser
from ttt_jax.data import heldout
from ttt_jax.data.records import places, tasks
from ttt_jax.data.records.records import Record
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites.suite import Item, Reply
from ttt_jax.generate.engine import Engine
from ttt_jax.train.trained_model import TrainedModel

_AHEAD = 4  # requests that wait for each slot, so that no slot stays idle
_MANY = 8   # requests per slot, for which more programs are worth compiling


def replies(run: TrainedModel, asked: Sequence[tuple[int, Item]],
            judge: Recogniser | None = None) -> Iterator[tuple[int, Item, Reply]]:
  """Answer items; yields (number, item, reply) in the order in which answers end.

  The draws of an answer depend on its number alone, so an answer does not depend on the others, on
  the batch, or on where an interrupted evaluation went on. An item that cannot be asked (silence,
  a prompt that leaves no room) is answered by nothing, and ``Reply.problem`` says why.

  Args:
    run: the model.
    asked: (number, item) pairs.
    judge: for ``Reply.heard``.

  Raises:
    UserError: an audio file cannot be read.
  """
  if not asked:
    return
  config = run.config
  slots = min(config.evaluate.batch, len(asked))
  chunk = _AHEAD * slots  # that are encoded at once
  mesh = getattr(jax.tree.leaves(run.params)[0].sharding, 'mesh', None)
  on_mesh = jax.set_mesh(mesh) if mesh is not None and mesh.size > 1 else contextlib.nullcontext()
  none = np.zeros(0, np.int32)
  with on_mesh, futures.ThreadPoolExecutor(1) as background:
    engine = Engine(run.model, run.params, run.vocab,
                    dataclasses.replace(config.generate, slots=slots), mode=config.objective.mode,
                    prompt_audio=config.objective.prompt_audio,
                    short_lived=len(asked) < _MANY * slots)
    prompt = _Prompts(run)
    # The first part is small, so that decoding begins early.
    parts = [asked[:slots], *(asked[at:at + chunk] for at in range(slots, len(asked), chunk))]
    ready = background.submit(prompt.of, parts.pop(0))
    open_requests: dict[int, tuple[int, Item]] = {}

    def submit() -> Iterator[tuple[int, Item, Reply]]:
      """Queue encoded requests if few are left, and wait for them if none is left; yields those
      that cannot be asked."""
      nonlocal ready
      while ready is not None and (
          not open_requests or len(open_requests) <= slots and ready.done()):
        found = ready.result()
        ready = background.submit(prompt.of, parts.pop(0)) if parts else None
        for number, item, ids in found:
          if isinstance(ids, str):
            yield number, item, Reply('', none, run.codec, judge, problem=ids,
                                     language=item.language)
          else:
            open_requests[engine.submit(ids, name=number, where=item.record.where or item.id)] = (
                number, item)

    yield from submit()
    for event in engine.events():  # it goes on as long as requests are queued
      if event.answer is None:
        continue
      text, codes = run.renderer.unrender(event.answer.ids)
      number, item = open_requests.pop(event.request)
      yield number, item, Reply(
          text.strip(), np.concatenate(codes) if codes else none, run.codec, judge,
          event.answer.finished, event.answer.seconds, language=item.language)
      yield from submit()


class _Prompts:
  """Renders items for a model, with the system prompts that it was trained with."""

  def __init__(self, run: TrainedModel):
    self._run = run
    data = run.config.data
    self._system = functools.cache(lambda task: heldout.system_prompt(
        run.data_dir, task, data.text_chunk, data.audio_chunk))

  def of(self, asked: Sequence[tuple[int, Item]]) -> list[tuple[int, Item, np.ndarray | str]]:
    """(number, item, ids int32 [n] or the reason why there are none) of each item."""
    run = self._run
    clips = [part for _, item in asked for part in item.record.audio() if part.codes is None]
    codes = run.codec.encode_many(places.read(part, '') for part in clips)
    encoded = dict(zip(map(id, clips), codes))
    return [(number, item, self._ids(item, encoded)) for number, item in asked]

  def _ids(self, item: Item, encoded: dict[int, np.ndarray | UserError]) -> np.ndarray | str:
    failed = [found for part in item.record.audio()
              if isinstance(found := encoded.get(id(part)), UserError)]
    if failed:
      return f'its audio cannot be encoded: {failed[0]}'
    record = item.record.map_audio(
        lambda part: dataclasses.replace(part, codes=encoded.get(id(part), part.codes)))
    ids = self._run.renderer.render_prompt(_with_prompt(record, self._system(record.task)))
    limit = self._run.config.generate.max_tokens
    if len(ids) >= limit:
      return f'its prompt has {len(ids):,} tokens, and generate.max_tokens is {limit:,}'
    return ids


def _with_prompt(record: Record, system: str) -> Record:
  """The record with the system prompt of its task, unless it has one."""
  return record if record.turns[0].role == 'system' else tasks.with_prompt(record, system)
