"""The command `plan`: its flags, and the preset of a config that fits a topology."""

import argparse
import dataclasses
import json
import pathlib
import sys

from ttt_jax import config as config_lib
from ttt_jax.config.settings import REMATS
from ttt_jax.errors import UserError
from ttt_jax.storage import files, owned
from ttt_jax.system import hardware

EXAMPLE = ('ttt-jax plan --config configs/ttt_3b.py --topology v5p:4x4x4 --remat auto '
           '--json plan.json')


def add_flags(sub: argparse.ArgumentParser) -> None:
  """Add the flags of `ttt-jax plan` other than --config and --workdir."""
  sub.add_argument('--topology', required=True, metavar='CHIPS',
                   help='v5p:4x4x4, v5e:16x16, h100:8 ...: chip, then chips along each axis')
  sub.add_argument('--slices', type=int, metavar='N',
                   help="number of slices, joined by the data-centre network (default: "
                        "mesh.slices of the config)")
  sub.add_argument('--remat', choices=('auto', *REMATS), metavar='POLICY',
                   help="'auto' for the cheapest policy that fits, or one of " + ', '.join(REMATS)
                        + " (default: model.remat of the config)")
  sub.add_argument('--json', metavar='FILE', help='also write the plan to this file')


def load_config(args: argparse.Namespace, overrides: dict[str, str]) -> config_lib.Config:
  """The config with the preset for the topology, unless the key `hardware` names another.

  Raises:
    UserError: no config, an invalid config, or an invalid topology.
  """
  path = args.config or pathlib.Path(args.workdir or '.') / 'config.json'
  if not args.config and not pathlib.Path(path).is_file():
    raise UserError('no config; add --config FILE, or --workdir DIR of a workdir that `ttt-jax '
                    'prepare` has written.')
  topology = hardware.parse_topology(args.topology, args.slices or 1)
  if 'hardware' not in overrides:
    wanted = topology.chip.name, topology.chips // topology.slices
    for name in config_lib.presets(path):
      *found, slices = hardware.parse_preset(name) or (None, None, None)
      if tuple(found) == wanted and slices == (args.slices or 1):
        overrides = {'hardware': name} | overrides
  config = config_lib.load(path, overrides)
  if args.slices:
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=args.slices))
  return config


def run(args: argparse.Namespace, config: config_lib.Config) -> None:
  """Compute the plan, print it, and write it as JSON if requested.

  Raises:
    UserError: the config does not fit the topology.
  """
  from ttt_jax.plan import child_process, summary
  if args.json:
    owned.check_json(args.json, 'topology', where='--json')
    files.require_writable_file(args.json)
  topology = hardware.parse_topology(args.topology, max(config.mesh.slices, 1))
  say = lambda what: print(what, file=sys.stderr, flush=True)
  plan = child_process.plan(config, topology, args.remat, args.workdir, say)
  print(summary.text(plan))
  if args.json:
    files.write_text(args.json, json.dumps(plan, indent=1) + '\n')
