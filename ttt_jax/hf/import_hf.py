"""Import a Qwen2 directory: parameters on the mesh, and from them an initial checkpoint.

The checkpoint has only weights: training initialises the optimizer state. Several processes read
their rows of every tensor (read_weights.py) and write their shards of the checkpoint; process 0
writes the rest.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import time
from typing import Any, Required

import jax
from jax.sharding import Mesh

from ttt_jax import config as config_lib
from ttt_jax.config import Config, ModelConfig
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.hf import peft, qwen_config, read_weights, tensor_names
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import files, folder_copies, owned, remote, safetensors_io, schema
from ttt_jax.system.version import git_revision, version
from ttt_jax.tokens import hf_tokenizer, tokenizer as tokenizers
from ttt_jax.tokens.tokenizer import BpeTokenizer
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import checkpoint, ownership, state as train_state, together
from ttt_jax.train.loop import RunProgress

ORIGIN = 'imported'     # folder in the workdir with the small files of the directory
IMPORT = 'import.json'  # the report, in that folder
_KEPT = ('config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json',
         'vocab.json', 'merges.txt', '*.tiktoken', 'LICENSE')
# What is fetched of a directory in a bucket: first what is checked, then all.
SMALL = (*_KEPT, safetensors_io.INDEX)
PATTERNS = (*SMALL, '*.safetensors')
_POLL = 0.1             # seconds between two looks at a save


class ReportFile(schema.Kind, total=False):
  """import.json: the fields of a Report."""
  directory: Required[str]
  tensors: Required[schema.Count]
  parameters: Required[schema.Count]
  dtype: Required[str]
  rows: Required[schema.Count]
  kept: Required[schema.Count]
  size: Required[schema.Count]
  adapter: str
  adapter_base: str


@dataclasses.dataclass(frozen=True)
class Report:
  """The report of an import.

  Attributes:
    directory: the imported directory.
    tensors, parameters: their numbers, without padding and new rows.
    dtype: of the tensors in the directory, and of the checkpoint.
    rows: vocabulary rows in the directory.
    kept: of these, the first ``kept`` are imported unchanged.
    size: of our vocabulary; rows from ``kept`` on are new.
    adapter: the PEFT directory; '' = none.
    adapter_base: the base that it names; '' = none.
  """
  directory: str
  tensors: int
  parameters: int
  dtype: str
  rows: int
  kept: int
  size: int
  adapter: str = ''
  adapter_base: str = ''

  def lines(self) -> list[str]:
    """The report as lines of text."""
    out = [f'{self.tensors} tensors, {self.parameters:,} parameters in {self.dtype} from '
           f'{self.directory}']
    if self.rows > self.kept:
      out.append(f'ids 0 to {self.kept - 1:,} have the rows of the directory; its rows from '
                 f'{self.kept:,} to {self.rows - 1:,} belong to no token and are left out')
    elif self.size > self.kept:
      out.append(f'ids 0 to {self.kept - 1:,} have the rows of the directory, the new ones from '
                 f'{self.kept:,} to {self.size - 1:,} their mean plus noise of '
                 f'{read_weights.NOISE} standard '
                 'deviations')
    else:
      out.append(f'all {self.size:,} ids have the rows of the directory')
    if self.adapter:
      named = f'was trained on {self.adapter_base!r}' if self.adapter_base else 'names no base'
      out.append(f'the adapter in {self.adapter} {named}; it fits these weights alone')
    return out


def read(directory: str | os.PathLike, dtype: str = 'float32',
         mesh: Mesh | None = None) -> tuple[ModelConfig, Vocabulary, Params]:
  """The model of a directory, with its own vocabulary or, for plain Qwen2.5, the extended one.

  Args:
    directory: config.json and safetensors of Qwen2.5 or of an exported Text-to-Talk model.
    dtype: of the parameters and of the computation: 'float32' or 'bfloat16'.
    mesh: of the parameters; default: the first device.

  Returns:
    (size, id space, parameters with the structure of Model.init).

  Raises:
    UserError: the directory is not such a model, or incomplete.
  """
  values = qwen_config.read(directory)
  vocab = qwen_config.vocabulary(values, directory)
  qwen_config.check_vocabulary(values, vocab, directory, 'its vocabulary')
  config = ModelConfig(**qwen_config.size(values), dtype=dtype)
  params, _ = load(directory, Model(config, vocab.size), _one_device() if mesh is None else mesh,
                   dtype, rows=values['vocab_size'])
  return config, vocab, params


def _one_device() -> Mesh:
  return sharding.make_mesh(config_lib.MeshConfig(), jax.local_devices()[:1])


def load(directory: str | os.PathLike, model: Model, mesh: Mesh, dtype: str = '',
         seed: int = 0, rows: int | None = None) -> tuple[Params, Report]:
  """read_weights.load with a report: (parameters, report)."""
  params, folder, source = read_weights.load(directory, model, mesh, dtype, seed, rows)
  plan = tensor_names.tensors(model)
  found = folder[tensor_names.EMBEDDING].rows
  return params, Report(
      str(directory), len(plan),
      sum(folder[name].nbytes // folder[name].dtype.itemsize for name in plan), source, found,
      min(found, model.vocab_size), model.vocab_size)


# -- the command -----------------------------------------------------------------------------


def import_hf(config: Config, workdir: str | os.PathLike, directory: str | os.PathLike,
              adapter: str | os.PathLike = '', dtype: str = '') -> Report:
  """Write step 0 of a run: the weights of a Hugging Face directory.

  Args:
    config: of the run; vocabulary, data and model size must fit the directory.
    workdir: has the prepared data, whose vocabulary the model gets, and no checkpoint yet.
      `train`, `evaluate` and `generate` start from the checkpoint that is written.
    directory: config.json and safetensors; may be at a URL of a bucket.
    adapter: a PEFT adapter directory for ``config.model.lora``, or its URL; '' = none.
    dtype: of the checkpoint; '' = that of the directory.

  Raises:
    UserError: config, data and directory do not fit together, a file is missing or damaged, or the
      workdir cannot be written or is in use.
  """
  workdir, named = pathlib.Path(workdir), str(directory)
  small, values, vocab = together.run(lambda: _inputs(config, workdir, directory, adapter))
  model = Model(config.model, vocab.size)
  mesh = train_state.converting_mesh(model, config.mesh)  # the run may train on other machines
  with ownership.owned(workdir), checkpoint.Checkpoints(workdir / 'checkpoints') as checkpoints:
    together.shared(workdir, '--workdir')
    newest = checkpoints.recover()
    if newest is not None:
      again = checkpoints.meta(newest).get('imported') or {}
      if (newest == 0 and schema.fits(again, ReportFile) and again['directory'] == named
          and not (workdir / ORIGIN / IMPORT).exists()):  # killed before the small files
        known = {field.name for field in dataclasses.fields(Report)}
        report = Report(**{key: value for key, value in again.items() if key in known})
        together.run_in_first(lambda: _keep_small_files(config, workdir, small, report))
        return report
      raise UserError(f'{checkpoints.directory} has checkpoint {newest} already; import into '
                      'another workdir, or remove that folder.')
    weights = together.run(lambda: _weights(named))
    params, report = load(weights, model, mesh, dtype, config.seed, values['vocab_size'])
    report = dataclasses.replace(report, directory=named)
    if adapter:
      params, base = peft.load(folder_copies.folder(adapter, peft.PATTERNS, '--adapter'), model,
                               mesh, params)
      report = dataclasses.replace(report, adapter=str(adapter), adapter_base=base)
    # First the small files: once the checkpoint is complete, the import is.
    together.run_in_first(lambda: _keep_small_files(config, workdir, small, report))
    _save(checkpoints, params, _note(config, vocab, report))
  return report


def _inputs(config: Config, workdir: pathlib.Path, directory: str | os.PathLike,
            adapter: str | os.PathLike) -> tuple[pathlib.Path, dict[str, Any], Vocabulary]:
  """(folder with the small files of the directory, its config.json, id space), all of which fit
  together with the config, the data and the adapter; no weights of the model are read."""
  small = folder_copies.folder(directory, SMALL, '--hf')
  values = qwen_config.read(small)
  _check_origin(workdir / ORIGIN, small)
  data_dir = store.locate(workdir, config.data.path)
  vocab = store.vocabulary(data_dir)
  store.check_data(config, data_dir, vocab)
  qwen_config.compare(values, config.model, small)
  qwen_config.check_vocabulary(values, vocab, small)
  _check_text(small, config, vocab)
  config_lib.check_saved(workdir)
  if adapter:
    peft.check(folder_copies.folder(adapter, peft.PATTERNS, '--adapter'),
               Model(config.model, vocab.size))
  return small, values, vocab


def _weights(directory: str) -> str | os.PathLike:
  """Where the weights are read: one process reads a directory in a bucket through checked copies on
  its disk; of several each would copy all of it, so they read their ranges of the objects."""
  if together.single():
    return folder_copies.folder(directory, PATTERNS, '--hf')
  return remote.check(directory, '--hf') if remote.is_url(directory) else directory


def _save(checkpoints: checkpoint.Checkpoints, params: Params, note: dict[str, Any]) -> None:
  """Save step 0 and wait; if one process fails, all do."""
  together.run(lambda: checkpoints.begin(0))
  failed = None
  try:
    checkpoints.save(0, train_state.TrainState(None, params, None), note)
  except Exception as error:
    failed = error
  while True:
    saving = failed is None and checkpoints.saving()
    try:
      if failed is None and not saving:
        checkpoints.wait()
    except Exception as error:
      failed = error
    # A process that waited by itself would wait for the file of one that has failed.
    if not together.agree(failed, busy=saving):
      return
    time.sleep(_POLL)


def _check_text(directory: pathlib.Path, config: Config, vocab: Vocabulary) -> None:
  """Raise UserError if the directory has the tokenizer of another text vocabulary than the data."""
  if not hf_tokenizer.has_files(directory):
    return
  found, ours = hf_tokenizer.read(directory), tokenizers.create(config.vocab)
  if found.ranks != vocab.text_ranks:
    raise UserError(f'the tokenizer in {directory} has {found.ranks:,} text ids, but the prepared '
                    f'data has {vocab.text_ranks:,} ({vocab.text}), which mean other text; prepare '
                    'the data with the tokenizer of that model.')
  if isinstance(found, BpeTokenizer) and isinstance(ours, BpeTokenizer) and (
      found.pieces() != ours.pieces()):
    raise UserError(f'the tokenizer in {directory} gives other ids than {config.vocab.tokenizer}, '
                    'which the data was prepared with (config key vocab.tokenizer); prepare the '
                    'data with the tokenizer of that model.')


def _check_origin(target: pathlib.Path, directory: pathlib.Path) -> None:
  """Raise UserError unless ``target`` may be replaced: an earlier import's, and not the input."""
  if target.exists() and (not target.is_dir() or directory.resolve().is_relative_to(
      target.resolve()) or owned.foreign(target, _earlier) is not None):
    raise UserError(f'{target} would be replaced by the small files of the import, but an import '
                    'did not create it; rename it, or use another workdir.')


def _note(config: Config, vocab: Vocabulary, report: Report) -> dict[str, Any]:
  """The JSON beside the checkpoint, with the keys that the training loop writes."""
  return {'data': {'next': 0}, 'progress': dataclasses.asdict(RunProgress()), 'seconds': {},
          'config': config_lib.to_dict(config), 'vocabulary': vocab.to_dict(),
          'fingerprint': vocab.fingerprint, 'revision': git_revision(), 'version': version(),
          'imported': dataclasses.asdict(report)}


def _earlier(folder: pathlib.Path) -> set[str]:
  """The files of an import without a marker, which its report proves to be ours."""
  try:
    schema.read(folder / IMPORT, ReportFile, '')
  except UserError:
    return set()
  return {IMPORT, *(path.name for pattern in _KEPT for path in folder.glob(pattern))}


def _keep_small_files(config: Config, workdir: pathlib.Path, directory: pathlib.Path,
                      report: Report) -> None:
  """Write config.json, the report, and copies of what an export reuses: licence, tokenizer ..."""
  config_lib.save(config, workdir)
  with owned.Building(workdir / ORIGIN, 'an earlier import', '--workdir', _earlier) as building:
    with files.writing(workdir / ORIGIN):
      for path in (path for pattern in _KEPT for path in directory.glob(pattern)):
        shutil.copyfile(path, building.folder / path.name)
    files.write_text(building.folder / IMPORT,
                     json.dumps(dataclasses.asdict(report), indent=2) + '\n')
    building.commit()
