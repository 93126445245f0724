"""The command line: flags, process-wide settings and the way from exceptions to exit codes.

system/exit_codes.py lists the exit codes.
"""

import argparse
import ctypes
import difflib
import functools
import io
import logging
import os
import pathlib
import re
import sys

from ttt_jax import config as config_lib
from ttt_jax.cli import (
    bucket_workdirs, cluster, environment, evaluate as cli_evaluate, generate, inspect, plan,
    prepare as cli_prepare, processes, profile, runs, serve, train as cli_train, weights)
from ttt_jax.config import paths, user_classes
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import mirror, outages
from ttt_jax.system import exit_codes

PROG = 'ttt-jax'

DESCRIPTION = """\
Text-to-Talk in JAX: one Transformer that generates text autoregressively and audio by
block-wise diffusion. Usual order: prepare, train, evaluate, generate, report; each command reads
and writes the folder named by --workdir. `plan` predicts memory and speed on chips you do not have.
"""

OVERRIDES = """\
Override any setting of the config with --config.GROUP.NAME=VALUE, for example
--config.model.num_layers=4; ttt_jax/config/settings.py lists all settings with meaning and unit.
"""


class _Parser(argparse.ArgumentParser):
  """Reports errors as one sentence, like all other errors, and suggests the right flag."""

  def add_argument(self, *names, **settings):
    action = super().add_argument(*names, **settings)
    self.flags: list[str] = [*getattr(self, 'flags', []), *action.option_strings]
    if action.nargs is None:
      self.valued: list[str] = [*getattr(self, 'valued', []), *action.option_strings]
    return action

  def parse_known_args(self, args=None, namespace=None):
    args = sys.argv[1:] if args is None else list(args)
    own = args[:1] if self.prog == PROG else args  # the rest is for the subparser
    for word in own:  # first, because argparse would report a missing flag before a misspelt one
      flag = word.split('=')[0]
      if flag.startswith('--') and flag not in self.flags:
        known = [name for name in self.flags if name.startswith('--')]
        raise UserError(f'{flag} is not a flag of `{self.prog}`; {_closest(flag, known)}')
    return super().parse_known_args(self._joined(args), namespace)

  def _joined(self, args: list[str]) -> list[str]:
    """``--flag -1/2`` as ``--flag=-1/2``: argparse takes such a value for another flag."""
    out: list[str] = []
    for word in args:
      if out and out[-1] in getattr(self, 'valued', ()) and re.match('-[^-]', word) and (
          word not in self.flags):
        out[-1] += f'={word}'
      else:
        out.append(word)
    return out

  def error(self, message: str):
    message = re.sub(r'^argument (--[\w-]+): expected one argument$', r'\1 needs a value', message)
    raise UserError(f'{message}; see `{self.prog} --help`.')


# -- flags --------------------------------------------------------------------------


def _build_parser() -> argparse.ArgumentParser:
  parser = _Parser(prog=PROG, description=DESCRIPTION, allow_abbrev=False,
                   epilog='example:\n  ttt-jax prepare --help',
                   formatter_class=argparse.RawDescriptionHelpFormatter)
  verbs = parser.add_subparsers(dest='verb', metavar='COMMAND', required=True)

  def verb(name: str, text: str, example: str, takes_config: bool = True):
    sub = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + '.', allow_abbrev=False,
        epilog=(OVERRIDES + '\n' if takes_config else '') + 'example:\n  ' + example,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    more = {'plan': '; its prepared data is sampled', 'evaluate': '; with --suite several'}
    several = {'nargs': '+', 'action': 'extend'} if name == 'evaluate' else {}
    sub.add_argument('--workdir', required=name != 'plan', metavar='DIR',
                     help='folder or URL of this run' + more.get(name, ''), **several)
    if takes_config:
      sub.add_argument('--config', metavar='FILE', required=name == 'prepare',
                       help='Python file with get_config()' + (
                           '' if name == 'prepare' else ' (default: WORKDIR/config.json)'))
    return sub

  cli_prepare.add_flags(verb('prepare', 'tokenize records and recordings and pack them into rows',
                             'ttt-jax prepare --config configs/demo.py --workdir demo'))
  inspect.add_verbs(verb)
  train = verb('train', 'train a model, or resume from the last checkpoint in the workdir',
               'ttt-jax train --config configs/demo.py --workdir short '
               '--config.data.path=../demo/data --config.train.steps=500')
  evaluate = cli_evaluate.add_flags(verb)
  cluster.add_flags(train)
  for sub in (train, evaluate):
    sub.add_argument('--devices', type=int, metavar='N',
                     help='split the CPU into N virtual devices, to test a mesh without hardware')
  generate.add_verbs(verb)
  serve.add_verbs(verb)
  verb('report', 'write an HTML report of the run, with curves, scores and audio samples',
       'ttt-jax report --workdir demo', takes_config=False)
  weights.add_verbs(verb)
  plan.add_flags(verb('plan', 'predict whether a run fits on given chips and how fast it is, '
                          'without having them', plan.EXAMPLE))
  runs.add_verbs(verb)
  profile.add_verbs(verb)
  return parser


def _take_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
  """Split off --config.KEY=VALUE and --config.KEY VALUE; the last value of a key wins."""
  rest, overrides = [], {}
  words = iter(argv)
  for word in words:
    if not word.startswith('--config.'):
      rest.append(word)
      continue
    key, equals, value = word.removeprefix('--config.').partition('=')
    if not equals:
      value = next(words, None)
      if value is None or value.startswith('--'):
        raise UserError(f'{word} needs a value, as in {word}=VALUE.')
    overrides[key] = value
  return rest, overrides


def _parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
  end = argv.index('--') if '--' in argv else len(argv)
  rest, overrides = _take_overrides(argv[:end])  # after it comes another program's command
  if not rest:
    raise UserError('no command; use one of ' + ', '.join(VERBS) + '; see `ttt-jax --help`.')
  if rest[0] not in VERBS and not rest[0].startswith('-'):
    raise UserError(f'{rest[0]!r} is not a command; {_closest(rest[0], VERBS)}')
  args, unknown = _build_parser().parse_known_args(rest)
  if unknown:
    raise UserError(f'{unknown[0]!r} is an unexpected argument; see `ttt-jax {args.verb} --help`.')
  if overrides and not hasattr(args, 'config'):
    raise UserError(f'--config.{next(iter(overrides))} has no effect on `ttt-jax {args.verb}`; '
                    'remove it.')
  if end < len(argv) and not hasattr(args, 'command'):
    raise UserError(f"'--' has no effect on `ttt-jax {args.verb}`; remove it.")
  _expand_paths(args)
  if isinstance(args.workdir, list):  # of `evaluate`
    args.workdirs, args.workdir = args.workdir, args.workdir[0]
  args.command, args.overrides = argv[end + 1:], overrides
  return args, overrides


def _expand_paths(args: argparse.Namespace) -> None:
  """Expand ``~`` in the flags that name files and folders, which a shell leaves alone after '='."""
  for name in ('workdir', 'config', 'out', 'hf', 'adapter', 'base', 'sweep', 'json', 'records',
               'record', 'audio', 'data', 'api_key_file'):
    value = getattr(args, name, None)
    local = bucket_workdirs.local if name == 'workdir' else functools.partial(
        paths.local, bucket=name in weights.URLS.get(args.verb, ()))
    empty = value == '' or isinstance(value, list) and '' in value
    if empty and name in ('workdir', 'out', 'hf', 'config', 'sweep', 'data'):
      raise UserError(f'--{name} is empty; an unset variable of the shell gives this.')
    if isinstance(value, str):
      setattr(args, name, local(value, f'--{name}'))
    elif isinstance(value, list):
      setattr(args, name, [local(item, f'--{name}') for item in value])


def _closest(word: str, known) -> str:
  close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
  return f'did you mean {close[0]}?' if close else f'use one of {", ".join(known)}.'


# -- settings of the process ----------------------------------------------------------


def _configure_process(devices: int | None) -> None:
  """Set environment variables before the packages that read them are imported."""
  cache = os.environ.get('TTT_JAX_CACHE') or os.path.expanduser('~/.cache/ttt_jax')
  for name, value in {
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1',
      'ORT_DISABLE_TELEMETRY': '1',  # onnxruntime sends telemetry by default
      'RAY_USAGE_STATS_ENABLED': '0',  # of a cluster that is started from here
      'HF_HUB_OFFLINE': '1',         # ASR models come from wheels or local folders
      'TF_CPP_MIN_LOG_LEVEL': '2',
      # NumPy's matrix products are small here: OpenBLAS' threads would mostly wait for each other.
      # JAX has threads of its own, and `prepare` has processes.
      'OPENBLAS_NUM_THREADS': '1',
      # TensorStore gives up a request to a bucket that is silent for so many seconds.
      'TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS': '10',
      'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '60',
      'TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES': '1',
  }.items():
    os.environ.setdefault(name, value)
  if not (environment.has_accelerator_files() or environment.accelerator_plugins()):
    # libtpu, which `ttt-jax plan` needs, would otherwise search for TPU chips for minutes.
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')  # texts may hold what a terminal cannot show
  logging.basicConfig(level=logging.WARNING, format='%(message)s', stream=sys.stderr)
  logging.getLogger('ttt_jax').setLevel(logging.INFO)
  # Orbax logs tracebacks of errors which it also raises; the sentence is enough.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  if devices is not None:
    if devices < 1:
      raise UserError(f'--devices is {devices}; it must be at least 1.')
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={devices}'.strip()
  if sys.platform == 'linux':
    _keep_freed_memory()


def _keep_freed_memory() -> None:
  """Tell glibc to keep freed memory. XLA's CPU backend allocates and frees its buffers at every
  step; returning them to the kernel and faulting them in again takes a fifth of a small model's
  time."""
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'mallopt'):  # glibc only
    for option, value in ((-8, 1),           # M_ARENA_MAX: one heap for all threads
                          (-4, 0),           # M_MMAP_MAX: large blocks from that heap, too
                          (-1, 2**31 - 1),   # M_TRIM_THRESHOLD: do not shrink it
                          (-2, 2**28)):      # M_TOP_PAD: grow it in large steps
      libc.mallopt(option, value)


def _load_config(args: argparse.Namespace, overrides: dict[str, str]) -> config_lib.Config:
  config = _read_config(args, overrides)
  user_classes.remember(config.codec)
  return config


def _read_config(args: argparse.Namespace, overrides: dict[str, str]) -> config_lib.Config:
  if args.verb == 'plan':
    return plan.load_config(args, overrides)
  if args.verb == 'serve' and (found := serve.load_config(args, overrides)):
    return found
  if args.config:
    return config_lib.load(args.config, overrides)
  saved = pathlib.Path(args.workdir) / 'config.json'
  if not saved.is_file():
    raise UserError(f'{saved} does not exist; name the config with --config FILE, or a workdir '
                    'that `ttt-jax prepare` has written.')
  return config_lib.load(saved, overrides)


# -- commands: heavy modules are imported when their command runs ----------------------


def _report(args: argparse.Namespace, config: None) -> None:
  from ttt_jax.runs.report.page import report
  print(mirror.named(report(args.workdir)))


VERBS = {'prepare': cli_prepare.run, **inspect.VERBS, 'train': cli_train.run,
         'evaluate': cli_evaluate.run, **generate.VERBS, 'report': _report, **serve.VERBS,
         **weights.VERBS, 'plan': plan.run, **runs.VERBS, **profile.VERBS}


def main(argv: list[str] | None = None) -> int:
  """Run one command; returns the exit code."""
  verb, config, args = '', None, None
  try:
    args, overrides = _parse(sys.argv[1:] if argv is None else argv)
    verb = args.verb
    if verb in environment.WITH_JAX:
      environment.check_xla_flags(os.environ)
    _configure_process(getattr(args, 'devices', None))
    if verb != 'serve':  # futures of Orbax whose errors are raised elsewhere, too
      logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    with bucket_workdirs.opened(args):
      config = _load_config(args, overrides) if hasattr(args, 'config') else None
      code = VERBS[verb](args, config)  # None = success
  except UserError as error:
    return _failed(error, exit_codes.USER_ERROR)
  except RetryableError as error:
    return _failed(error, exit_codes.FAILURE, argv)
  except KeyboardInterrupt:
    print('ttt-jax: interrupted.', file=sys.stderr)
    return exit_codes.INTERRUPTED
  except Exception as error:
    known = environment.explain(error, verb, config) or bucket_workdirs.explain(error, args)
    if known is None:
      raise  # a bug: its traceback helps
    return _failed(known, exit_codes.FAILURE if isinstance(known, RetryableError)
                   else exit_codes.USER_ERROR, argv)
  return code or exit_codes.SUCCESS


def _failed(error: BaseException, code: int, argv: list[str] | None = None) -> int:
  """Print the sentence; returns the code. A process whose store is lost, which has no ``argv`` of a
  caller, ends here: threads of libraries would still wait for the store for minutes."""
  print(f'ttt-jax: error: {mirror.in_urls(str(error))}', file=sys.stderr)
  if code == exit_codes.FAILURE and argv is None and outages.any_lost():
    processes.exit_now(code)
  return code
