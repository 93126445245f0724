"""What the environment lacks, as one sentence: memory, devices, compiler flags.

A restart would fail the same way, so these are user errors; ``explain`` returns None for the rest.
"""

from collections.abc import Mapping
import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import traceback

from ttt_jax.config import Config
from ttt_jax.errors import UserError
from ttt_jax.storage import files

_SIZE = re.compile(r'(?:allocat\w*|allocation of)\D{0,40}?([\d.,]+) ?(bytes|[kKMGTPE]i?B)', re.I)
_DEVICES = re.compile(r'jax/_src/xla_bridge\.py$')
# Verbs that start JAX's devices.
WITH_JAX = ('train', 'evaluate', 'generate', 'score', 'import-hf', 'export-hf', 'serve')


def explain(error: BaseException, verb: str, config: Config | None) -> UserError | None:
  """The user error for an exception that the environment caused.

  Args:
    error: any exception.
    verb: command that raised it.
    config: of the command, if it takes one.
  """
  text = ' '.join(str(error).split())
  if isinstance(error, MemoryError) or ('RESOURCE_EXHAUSTED' in text and re.search(
      'memory|alloc', text, re.I)):
    return UserError(_out_of_memory(text, verb, config))
  frames = traceback.extract_tb(error.__traceback__)
  if isinstance(error, (RuntimeError, AssertionError)) and any(
      _DEVICES.search(pathlib.PurePath(frame.filename).as_posix()) for frame in frames):
    return UserError(_no_devices(text))
  if isinstance(error, OSError) and error.errno and error.filename is not None:
    return UserError(files.cannot_use(error))  # where no sentence names more than the file
  return None


def _out_of_memory(text: str, verb: str, config: Config | None) -> str:
  found = _SIZE.search(text)
  size = ''
  if found:
    number, unit = float(found[1].replace(',', '').rstrip('.')), found[2]
    size = f': {number / 1e9:.3g} GB were asked for' if unit == 'bytes' else (
        f': {found[1]} {unit} were asked for')
  return (f'out of memory{size}; try, cheapest first, {", ".join(_remedies(verb, config))} '
          '(docs/scaling.md, Memory).')


def _remedies(verb: str, config: Config | None) -> list[str]:
  """What needs less memory, from what costs least to what costs most."""
  if verb == 'train' and config is not None:
    train, model = config.train, config.model
    out = []
    if train.grad_accum_steps < train.batch_size:
      out.append('train.grad_accum_steps='
                 f'{min(2 * train.grad_accum_steps, train.batch_size)} (or more)')
    if config.objective.loss_chunk > 512:
      out.append('objective.loss_chunk=512')
    if model.attention == 'dense':
      out.append('model.attention=blockwise')
    if model.remat != 'full':
      out.append('model.remat=full')
    out += ['a smaller train.batch_size', 'more devices along mesh.fsdp']
    return out + (['optimizer.name=adafactor'] if config.optimizer.name != 'adafactor' else [])
  return {
      'generate': ['a smaller generate.slots', 'a smaller generate.max_tokens',
                   'more devices'],
      'evaluate': ['a smaller evaluate.batch', 'a smaller generate.max_tokens',
                   'a smaller train.batch_size', 'more devices'],
      'score': ['a smaller score.tokens', 'more devices'],
      'prepare': ['a smaller data.workers'],
  }.get(verb, ['a machine with more memory'])


def _no_devices(text: str) -> str:
  wanted = os.environ.get('JAX_PLATFORMS', '')
  plugins = accelerator_plugins()
  installed = f'installed are {", ".join(plugins)}' if plugins else (
      "no package for GPUs is installed (the extra 'gpu')")
  detail = f' ({text[:160]})' if text else ''
  if wanted:
    return (f'JAX_PLATFORMS is {wanted!r}, but JAX cannot start these devices here{detail}; '
            f'{installed}; unset JAX_PLATFORMS to use what there is, or set it to cpu.')
  return (f'JAX cannot start its devices{detail}; {installed}; JAX_PLATFORMS=cpu computes on the '
          'CPU.')


# -- before the work --------------------------------------------------------------------------


def check_xla_flags(env: Mapping[str, str]) -> None:
  """UserError if XLA does not know a flag of XLA_FLAGS: it would abort the process.

  The flags are tried in a process of their own, in a third of a second.
  """
  flags = env.get('XLA_FLAGS', '').split()
  if not set(flags) - {flag for flag in flags if 'host_platform_device_count' in flag}:
    return
  tried = subprocess.run(
      [sys.executable, '-c', 'from jaxlib import xla_client; xla_client.CompileOptions()'],
      env=dict(env), capture_output=True, text=True, check=False)
  unknown = re.search(r'Unknown flags? in XLA_FLAGS: (.*)', tried.stderr)
  if tried.returncode and unknown:
    raise UserError(f'XLA_FLAGS has {unknown[1].strip()}, which this version of XLA does not know; '
                    'remove it. Flags of libtpu belong in LIBTPU_INIT_ARGS.')


def accelerator_plugins() -> list[str]:
  """Names of the installed packages that give JAX GPUs or other accelerators; libtpu is none."""
  names = {entry.name for entry in importlib.metadata.entry_points(group='jax_plugins')}
  spec = importlib.util.find_spec('jax_plugins')  # a namespace package of all plugins
  for folder in (spec.submodule_search_locations or []) if spec else []:
    names |= {path.name for path in pathlib.Path(folder).iterdir()
              if path.is_dir() and not path.name.startswith('_')}
  return sorted(names)


def has_accelerator_files() -> bool:
  """Whether there are device files of TPUs or GPUs; WSL2 has /dev/dxg alone."""
  return any(glob.glob(f'/dev/{device}*')
             for device in ('accel', 'vfio/', 'nvidia', 'kfd', 'dxg'))


def gpu_names(env: Mapping[str, str] = os.environ) -> list[str]:
  """The GPUs visible to this process, as CUDA_VISIBLE_DEVICES, device files or the driver name
  them. JAX itself cannot be asked: its devices must not start before the processes have joined."""
  if env.get('JAX_PLATFORMS', '') == 'cpu':
    return []
  if 'CUDA_VISIBLE_DEVICES' in env:
    names = []
    for word in env['CUDA_VISIBLE_DEVICES'].split(','):
      if not word.strip() or word.strip().startswith('-'):
        break  # CUDA ignores an invalid device and all after it
      names.append(word.strip())
    return names
  files = sorted((file.removeprefix('/dev/nvidia') for file in glob.glob('/dev/nvidia[0-9]*')),
                 key=int)
  if files or not os.path.exists('/dev/dxg'):
    return files
  try:
    listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, check=False,
                            timeout=30)
  except (OSError, subprocess.SubprocessError):
    return []
  return re.findall(r'^GPU (\d+):', listed.stdout, re.M)
