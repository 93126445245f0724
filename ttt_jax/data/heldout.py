"""What generation and evaluation need of a prepared set: held-out records, system prompts."""

import dataclasses
import pathlib

from ttt_jax.data import store
from ttt_jax.data.records import readers, records, sources, tasks
from ttt_jax.data.records.records import Record
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path


def load_records(data_dir: str | pathlib.Path, split: str = 'heldout',
                 key: str = 'evaluate.split') -> list[Record]:
  """The held-out records of a prepared set, in order.

  Args:
    data_dir: directory of the set.
    split: one whose name starts with 'heldout'; only their records are stored.
    key: the config key that names the split, for the error message.

  Returns:
    Records whose audio parts have their codes; ``source`` is relative to data_dir, or None
    where the set was made from codes alone.

  Raises:
    UserError: no such set or split, the split is one for training, or a record names a recording
      outside of data_dir, which `prepare` never writes.
  """
  data_dir = url_path.place(data_dir)
  manifest = store.read_manifest(data_dir)
  stored = [name for name in manifest['splits'] if sources.is_heldout(name)]
  if split not in stored:
    raise UserError(f'config key {key}: {data_dir} stores no records of split {split!r}; it stores '
                    f'those of {", ".join(stored) or "no split"} (splits named heldout...).')
  form = manifest.get('form', 'default')
  return [_checked(_answered(records.parse(value, where, form=form)), data_dir)
          for where, value in readers.read(data_dir / f'{split}.records.jsonl')]


def _answered(record: Record) -> Record:
  """A record up to its last answer; only the form 'published' has turns after it."""
  last = max((i for i, turn in enumerate(record.turns) if turn.role != 'user'), default=0)
  return dataclasses.replace(record, turns=record.turns[:last + 1])


def _checked(record: Record, data_dir: pathlib.Path) -> Record:
  root = data_dir.resolve()
  for part in record.audio():
    if part.source and ('\0' in part.source
                        or not (root / part.source).resolve().is_relative_to(root)):
      raise UserError(f'{record.where}: record {record.id} names the recording {part.source!r}, '
                      f'which is outside of {data_dir}; prepare the data again.')
  return record


def system_prompt(data_dir: str | pathlib.Path, task: str, text_chunk: int = 13,
                  audio_chunk: int = 26) -> str:
  """The system prompt that records of a task have in a prepared set, '' if they have none.

  Args:
    data_dir: directory of the set.
    task: any name; a task that the set does not hold has its default wording.
    text_chunk, audio_chunk: for that wording.

  Raises:
    UserError: no such set.
  """
  manifest = store.read_manifest(data_dir)
  if 'system_prompts' in manifest:
    prompts = manifest['system_prompts']
  else:  # version 2 (ttt_jax 0.1) did not store them: look at the held-out records
    prompts = {}
    for split in filter(sources.is_heldout, manifest['splits']):
      for record in load_records(data_dir, split):
        prompts.setdefault(record.task, tasks.prompt_of(record))
  return prompts[task] if task in prompts else tasks.wording(task, text_chunk, audio_chunk)
