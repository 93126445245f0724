"""The suites by name; a suite's module is imported when it is used."""

import difflib
import importlib
from typing import TYPE_CHECKING

from ttt_jax.config import Config
from ttt_jax.errors import UserError

if TYPE_CHECKING:  # the command line lists the names without importing the rest
  from ttt_jax.evaluate.suites.suite import Suite

SUITES = {
    'asr': 'ttt_jax.evaluate.suites.asr:Asr',
    'captioning': 'ttt_jax.evaluate.suites.captioning:Captioning',
    'classification': 'ttt_jax.evaluate.suites.classification:Classification',
    'spoken_qa': 'ttt_jax.evaluate.suites.spoken_qa:SpokenQa',
    'tts': 'ttt_jax.evaluate.suites.tts:Tts',
    'voicebench': 'ttt_jax.evaluate.suites.voicebench:VoiceBench',
}


def create(name: str, config: Config, task: str = '', subset: str = '') -> 'Suite':
  """The suite of a name; ``task`` and ``subset``: as in ``Suite``.

  Raises:
    UserError: an unknown name, or something that the suite needs is missing.
  """
  suite = suite_class(name)(config, task)
  if subset and not suite.has_subsets:
    raise UserError(f'--subset has no effect on suite {name}, which reads all that --data names; '
                    'remove it.')
  suite.subset = subset
  return suite


def suite_class(name: str) -> 'type[Suite]':
  """The class of a suite.

  Raises:
    UserError: an unknown name.
  """
  if name not in SUITES:
    close = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.5)
    hint = f'did you mean {close[0]}?' if close else f'use one of {", ".join(SUITES)}.'
    raise UserError(f'--suite is {name!r}, which is not a suite; {hint}')
  module, _, attribute = SUITES[name].partition(':')
  return getattr(importlib.import_module(module), attribute)
