"""`ttt-jax serve`: the HTTP server."""

import argparse
from collections.abc import Callable
import dataclasses
import json
import pathlib
import signal

from ttt_jax import config as config_lib
from ttt_jax.cli.checkpoint_flag import add_checkpoint
from ttt_jax.errors import UserError
from ttt_jax.system import exit_codes


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
  """Add the commands in VERBS to the command line; ``verb`` as in generate.add_verbs."""
  sub = verb('serve', 'serve a trained or exported model over HTTP, in OpenAI\'s protocol',
             'ttt-jax serve --workdir demo')
  add_checkpoint(sub)
  sub.add_argument('--host', default='127.0.0.1', metavar='ADDRESS',
                   help='where to listen (default: 127.0.0.1, this machine alone)')
  sub.add_argument('--port', type=int, default=8000, metavar='N', help='(default: 8000; 0 = any)')
  sub.add_argument('--api-key-file', metavar='FILE',
                   help='requests must send the key in its first line (default: no key)')
  sub.add_argument('--allow-origin', action='append', default=[], metavar='ORIGIN',
                   help='pages of this origin may use the server, too, such as '
                   'https://example.org; can be repeated')
  sub.add_argument('--devices', type=int, metavar='N',
                   help='split the CPU into N virtual devices, to test a mesh without hardware')


def load_config(args: argparse.Namespace, overrides: dict[str, str]) -> config_lib.Config | None:
  """The config of an exported or Qwen2 directory; None if --workdir is a run's."""
  if args.config or not _is_exported(args.workdir):
    return None
  from ttt_jax.hf import qwen_config
  known = {field.name for field in dataclasses.fields(config_lib.GenerateConfig)}
  stored = qwen_config.read(args.workdir).get('ttt_generate', {})
  return config_lib.of_values(
      {'generate': {key: value for key, value in stored.items() if key in known}}, overrides)


def _is_exported(workdir: str) -> bool:
  """Whether a folder has the config.json of Hugging Face instead of ours."""
  try:
    values = json.loads((pathlib.Path(workdir) / 'config.json').read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError):
    return False  # whoever reads it says what is wrong
  return isinstance(values, dict) and 'model_type' in values


def _serve(args: argparse.Namespace, config: config_lib.Config) -> int:
  if not 0 <= args.port < 2**16:
    raise UserError(f'--port is {args.port}; it must be from 0 to 65535.')
  try:
    from ttt_jax.serve import page, realtime, served_model, server, service
  except ModuleNotFoundError as error:
    raise UserError(f"`ttt-jax serve` needs the package {error.name}; install the extra 'serve': "
                    "pip install 'ttt_jax[serve]'.") from error
  key = server.read_key(args.api_key_file) if args.api_key_file else ''
  listener = server.bind(args.host, args.port)
  if _is_exported(args.workdir):
    model = served_model.load_directory(config, args.workdir)
  else:
    model = served_model.load(config, args.workdir, args.checkpoint)
  state = service.Service.make(model, config.serve)
  server.warm_up(state.loop)
  number = server.run(state, listener, key, args.allow_origin, (page.ROUTE, *realtime.ROUTES))
  return exit_codes.INTERRUPTED if number == signal.SIGINT else exit_codes.SUCCESS


VERBS = {'serve': _serve}
