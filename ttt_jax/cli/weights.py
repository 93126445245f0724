"""Commands for Hugging Face weights: `import-hf` and `export-hf`."""

import argparse
from collections.abc import Callable
from typing import Any

from ttt_jax.cli import cluster, processes
from ttt_jax.cli.checkpoint_flag import add_checkpoint
from ttt_jax.config import Config
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

DTYPES = ('float32', 'bfloat16')
PARTS = ('merged', 'base', 'adapter')
# Flags that may be URLs of buckets.
URLS = {'import-hf': ('hf', 'adapter'), 'export-hf': ('out', 'base')}


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
  """Add the commands in VERBS to the command line.

  Args:
    verb: (name, text, example, takes_config=True) -> its parser, which has --workdir already.
  """
  take = verb('import-hf', 'start a run from Qwen2 weights in a Hugging Face folder',
              'ttt-jax import-hf --hf Qwen2.5-0.5B --workdir runs/0p5b')
  take.add_argument('--hf', required=True, metavar='DIR',
                    help='folder with config.json and safetensors, or its URL in a bucket')
  take.add_argument('--adapter', default='', metavar='DIR',
                    help='a PEFT adapter folder or URL, for config keys model.lora')
  take.add_argument('--dtype', default='', choices=('', *DTYPES), metavar='DTYPE',
                    help='of the checkpoint: float32 or bfloat16 (default: as in the folder)')
  cluster.add_flags(take)
  give = verb('export-hf', 'write a checkpoint as a Hugging Face folder for PyTorch',
              'ttt-jax export-hf --workdir demo --out demo/export')
  give.add_argument('--out', required=True, metavar='DIR', help='output folder or URL')
  add_checkpoint(give)
  give.add_argument('--dtype', default='', choices=('', *DTYPES), metavar='DTYPE',
                    help='of the tensors: float32 or bfloat16 (default: as in the checkpoint)')
  give.add_argument('--part', default='merged', choices=PARTS, metavar='PART',
                    help='of a run with LoRA: merged, base (without the adapters), or adapter '
                         '(a PEFT folder); default: merged')
  give.add_argument('--base', default='', metavar='NAME',
                    help='of --part adapter: name, folder or URL of what --part base wrote, '
                         'for adapter_config.json (default: none)')
  give.add_argument('--overwrite', action='store_true',
                    help='replace an earlier export at --out')
  give.add_argument('--shard-gb', type=float, default=5.0, metavar='GB',
                    help='maximum size of a tensor file in gigabytes (default: 5); a file belongs '
                         'to one process')
  cluster.add_flags(give)


def _import(args: argparse.Namespace, config: Config) -> None:
  with processes.several(args, config):
    from ttt_jax.hf import import_hf
    from ttt_jax.train import together
    report = import_hf.import_hf(config, args.workdir, args.hf, args.adapter, args.dtype)
    if together.is_first():
      print('\n'.join(report.lines()))


def _export(args: argparse.Namespace, config: Config) -> None:
  if not 0 < args.shard_gb < 1e9:  # NaN is neither
    raise UserError(f'--shard-gb is {args.shard_gb:g}; it must be above 0 and below 1,000,000,000.')
  with processes.several(args, config):
    from ttt_jax.hf import export_hf
    from ttt_jax.train import together
    facts = export_hf.export_hf(
        config, args.workdir, args.out, dtype=args.dtype, part=args.part, base=args.base,
        overwrite=args.overwrite, shard_bytes=int(args.shard_gb * 1e9), step=args.checkpoint)
    if together.is_first():
      _say(args, facts)


def _say(args: argparse.Namespace, facts: dict[str, Any]) -> None:
  print(f'{url_path.place(args.out)}: step {facts["step"]:,}, {facts["tensors"]} tensors, '
        f'{facts["parameters"]:,} parameters in {facts["dtype"]}; read back and verified')
  if args.part == 'adapter' and not args.base:
    print('adapter_config.json names no base: the adapter fits what `ttt-jax export-hf --part '
          'base` writes, which --base NAME names.')


VERBS = {'import-hf': _import, 'export-hf': _export}
