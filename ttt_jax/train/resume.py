"""What a run that starts from a checkpoint compares with it: every setting that decides a result.

  differs from the checkpoint's note                what happens
  model sizes, RoPE, norm, adapters, the optimizer  the run ends: the arrays do not fit, or would
                                                    mean another function
  rows, seed, batches, objective, learning rate     a sentence each, and the run goes on
  the rest (mesh, remat, logging ...)               nothing: the result does not depend on it

The tables below name every setting of the config; a test compares them with settings.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from ttt_jax.config import Config, ModelConfig, OptimizerConfig, flat, from_dict, upgraded
from ttt_jax.errors import UserError
from ttt_jax.train import checkpoint, optimizer as optimizers, state as train_state

SIZES = ('model.num_layers', 'model.hidden_size', 'model.num_attention_heads',
         'model.num_key_value_heads', 'model.head_dim', 'model.intermediate_size',
         'model.tie_word_embeddings')
CONSTANTS = ('model.rope_theta', 'model.rms_norm_eps')
ADAPTERS = ('model.lora.rank', 'model.lora.targets', 'model.lora.alpha')
OPTIMIZER = ('optimizer.name',)
# They are named if the arrays differ; if these are the same, they mean the same.
ARRAYS = ('model.vocab_multiple', 'optimizer.max_grad_norm')
SCHEDULE = ('train.steps', 'optimizer.schedule_steps', 'optimizer.learning_rate',
            'optimizer.warmup_ratio', 'optimizer.final_fraction')
_SCORED = ('train.keep_best', 'train.eval_split', 'train.eval_batches')
# Setting -> what its change does.
SAID = {
    **dict.fromkeys(('train.batch_size', 'data.stages', 'data.shuffle', 'data.sst'),
                    'batches are counted, so rows may repeat or be left out'),
    'seed': 'the order of the rows and all noise are others from here on, and rows may repeat or '
            'be left out',
    **dict.fromkeys(('objective.mode', 'objective.prompt_audio', 'objective.mask_floor',
                     'objective.banom', 'objective.banom_unit', 'objective.ppm',
                     'objective.ar_weight', 'objective.diffusion_weight', 'objective.ar_mean',
                     'objective.t_unit', 'objective.confidence_weight'),
                    'the objective is another from here on, and losses cannot be compared'),
    **dict.fromkeys(('objective.t_sampling', 'objective.t_density', 'objective.mask_weight',
                     'objective.mirror'),
                    'the noise is another from here on, with the same expectation'),
    **dict.fromkeys(('optimizer.weight_decay', 'optimizer.beta1', 'optimizer.beta2',
                     'optimizer.eps', 'optimizer.max_grad_norm', 'optimizer.newton_steps',
                     'model.lora.dropout'), 'updates use the new value from here on'),
    'model.dtype': 'the model computes in the new one from here on',
    **dict.fromkeys(_SCORED, 'scores cannot be compared, so the best one counts from here on'),
}
# No result of training depends on them, or the prepared rows and their vocabulary, which are
# compared themselves, stand for them. A name without a dot is a group.
FREE = (
    'name', 'hardware', 'vocab', 'codec', 'mesh', 'generate', 'evaluate', 'score', 'serve',
    'data.path', 'data.sources', 'data.root', 'data.audio_roots', 'data.seq_len', 'data.text_chunk',
    'data.audio_chunk',
    'data.span_fill', 'data.form', 'data.truncate', 'data.strict', 'data.max_rejects',
    'data.workers', 'data.runner', 'data.ray_address', 'data.threads', 'model.scan_unroll',
    'model.attention', 'model.attention_block', 'model.remat', 'objective.loss_chunk',
    'train.grad_accum_steps', 'train.log_every', 'train.checkpoint_every',
    'train.checkpoint_minutes', 'train.keep', 'train.keep_every', 'train.verify',
    'train.preemption', 'train.init_from', 'train.epochs', 'train.early_stopping_patience',
    'train.early_stopping_threshold', 'train.max_minutes', 'train.nonfinite_limit',
    'train.rollback_limit', 'train.eval_every', 'train.stuck_minutes', 'train.stuck_exit',
    'train.tensorboard', 'train.wandb', 'train.profile', 'train.profile_processes')


class Change(NamedTuple):
  """A setting that differs from the checkpoint's note."""
  key: str
  old: Any
  new: Any

  def __str__(self) -> str:
    return f'{self.key} was {self.old!r} and is {self.new!r}'

  def since(self, step: int) -> str:
    return (f'config key {self.key} was {self.old!r} when checkpoint {step} was written and is '
            f'{self.new!r} now')


# -- what ends a run ------------------------------------------------------------------------


def check(checkpoints: checkpoint.Checkpoints, step: int, config: Config,
          target: train_state.TrainState) -> None:
  """UserError unless a run of ``config`` can go on from a complete checkpoint.

  Args:
    checkpoints, step: the checkpoint.
    config: of the run that resumes.
    target: of its restore (train_state.abstract).
  """
  note = _settings(checkpoints.meta(step))
  trained = is_trained(checkpoints, step)
  wrong = checkpoints.differences(step, target._asdict()) if trained else []
  fatal = (*SIZES, *CONSTANTS)
  if trained:  # else adapters and the optimizer's state are new
    fatal += OPTIMIZER + (ADAPTERS if config.model.lora.rank else ADAPTERS[:1])
  changed = _changes(config, note, (*fatal, *ARRAYS) if wrong else fatal)
  if changed or wrong:
    new_sizes = {*SIZES, 'model.vocab_multiple'} & {change.key for change in changed}
    source = checkpoints.place(step)
    remedy = '' if new_sizes else f' with train.init_from={source}'
    raise UserError(checkpoint.mismatch(
        f'checkpoint {source}', changed, wrong,
        f'use the values of the checkpoint, or another workdir{remedy}'))


def check_weights(checkpoints: checkpoint.Checkpoints, step: int, model: ModelConfig,
                  target: Any) -> list[str]:
  """UserError unless the parameters of a complete checkpoint are those of a model.

  Args:
    checkpoints, step: the checkpoint.
    model: settings of the model.
    target: the parameters that are read, with shapes.

  Returns:
    A sentence for each constant that differs: the same weights compute another function.
  """
  note = _settings(checkpoints.meta(step))
  config = dataclasses.replace(Config(), model=model)
  wrong = checkpoints.differences(step, {'params': target}, dtypes=False)
  changed = _changes(config, note, (*SIZES, *ADAPTERS, 'model.vocab_multiple') if wrong else SIZES)
  where = f'checkpoint {checkpoints.place(step)}'
  if changed or wrong:
    raise UserError(checkpoint.mismatch(where, changed, wrong, 'use the values of the checkpoint'))
  return [f'{where} was trained with {change.key}={change.old!r}, and {change.new!r} is in use.'
          for change in _changes(config, note, CONSTANTS)]


# -- what is said ---------------------------------------------------------------------------


def sentences(checkpoints: checkpoint.Checkpoints, step: int, config: Config,
              dataset: Mapping[str, str]) -> Iterator[str]:
  """A sentence for each change that a run goes on with.

  Args:
    checkpoints, step: the checkpoint.
    config: of the run that resumes.
    dataset: store.fingerprints of its prepared set.
  """
  meta = checkpoints.meta(step)
  note = _settings(meta)
  start = config.train.init_from
  if start and start != note.get('train.init_from'):
    yield (f'config key train.init_from={start} is not read: the run goes on from checkpoint '
           f'{step}; use another workdir to start from other parameters.')
  if not is_trained(checkpoints, step):
    return
  yield from _rows(config, meta, note, dataset, step)
  for change in _changes(config, note, SAID):
    yield f'{change.since(step)}; {SAID[change.key]}.'
  lora = config.model.lora
  if config.objective.banom_unit == 'batch' or (lora.rank and lora.dropout):
    for change in _changes(config, note, ('train.grad_accum_steps',)):
      yield f'{change.since(step)}; some noise is drawn per microbatch and is another from here on.'
  skipped = meta.get('progress', {}).get('skipped', 0)  # these do not advance the schedule
  yield from _schedule(config, note, step, step - skipped)


def scores_changed(config: Config, meta: Mapping[str, Any]) -> bool:
  """Whether the best score of a checkpoint's note cannot be compared with those of ``config``."""
  return bool(_changes(config, _settings(meta), _SCORED))


def is_trained(checkpoints: checkpoint.Checkpoints, step: int) -> bool:
  """Whether a complete checkpoint has an optimizer state: it is not an import."""
  return 'opt_state' in checkpoints.stored(step)


def _rows(config: Config, meta: Mapping[str, Any], note: Mapping[str, Any],
          dataset: Mapping[str, str], step: int) -> Iterator[str]:
  before = meta.get('dataset')
  if not isinstance(before, Mapping):  # written before fingerprints were stored
    for change in _changes(config, note, ('data.path',)):
      yield f'{change.since(step)}; if the rows are others, they may repeat or be left out.'
    return
  read = {split for stage in config.data.stages for split in stage.splits()}
  other = sorted(split for split in read & before.keys() & dataset.keys()
                 if before[split] != dataset[split])
  if other:
    yield (f'the rows of split {", ".join(map(repr, other))} in {config.data.path} are not those '
           f'that checkpoint {step} was trained on: they were prepared anew, or data.path is '
           'another; rows may repeat or be left out.')


def _schedule(config: Config, note: Mapping[str, Any], step: int, updates: int) -> Iterator[str]:
  changed = _changes(config, note, SCHEDULE)
  if not changed or step >= config.train.steps:
    return
  old = {change.key: change.old for change in changed}
  try:
    earlier = from_dict(OptimizerConfig, {
        **vars(config.optimizer), **{key.removeprefix('optimizer.'): value
                                     for key, value in old.items() if key != 'train.steps'}})
  except UserError:  # a value that is no longer allowed
    return
  total = old.get('train.steps', config.train.steps)
  lengths = [optimizers.length(earlier, total),
             optimizers.length(config.optimizer, config.train.steps)]
  rates = [np.asarray(optimizers.schedule(settings, length)(updates)).item()
           for settings, length in zip((earlier, config.optimizer), lengths)]
  rest = [change for change in changed if change.key.startswith('optimizer.')
          and change.key != 'optimizer.schedule_steps']
  if lengths[0] == lengths[1] and not rest:
    return  # the earlier schedule is kept
  keep = f'; optimizer.schedule_steps={lengths[0]} keeps the earlier length of the schedule'
  yield (f'{" and ".join(change.since(step) for change in changed)}: the learning rate of the next '
         f'step is {rates[1]:.3g} instead of {rates[0]:.3g}'
         + (keep if lengths[0] != lengths[1] else '') + '.')


# -- comparing ------------------------------------------------------------------------------


def _settings(meta: Mapping[str, Any]) -> dict[str, Any]:
  """Dotted key -> value of the settings that a checkpoint was written with."""
  out: dict[str, Any] = {}

  def walk(values: Mapping[str, Any], prefix: str) -> None:
    for key, value in values.items():
      if isinstance(value, Mapping):
        walk(value, f'{prefix}{key}.')
      else:
        out[prefix + key] = value
  config = meta.get('config')
  walk(upgraded(dict(config)) if isinstance(config, Mapping) else {}, '')
  return out


def _changes(config: Config, note: Mapping[str, Any], keys: Iterable[str]) -> Sequence[Change]:
  """Those of ``keys`` that differ. A key that the note lacks is newer than the checkpoint, which
  was trained as its default says."""
  if not note:
    return []  # a note without settings
  now, default = flat(config), flat(Config())
  found = [Change(key, note.get(key, default[key]), now[key]) for key in keys]
  return [change for change in found if _comparable(change.old) != _comparable(change.new)]


def _comparable(value: Any) -> Any:
  """Lists of names have no order; a stage of an older note lacks keys that are not set."""
  if isinstance(value, list) and all(isinstance(item, str) for item in value):
    return sorted(value)
  if isinstance(value, list):
    return [{key: setting for key, setting in item.items() if setting is not None}
            if isinstance(item, dict) else item for item in value]
  return value
