"""Import a Qwen2 directory: parameters on the mesh, and from them an initial checkpoint.

Tensors are read in the order of the files, the next ones by threads, and written into their slice
of the stacked parameter on the devices. So the host never holds more than 256 MiB of tensors and
the largest one (of the embedding table two copies) beside its own devices' arrays. The checkpoint
has only weights: training initialises the optimizer state.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from typing import Any, Required

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttt_jax import config as config_lib
from ttt_jax.config import Config, ModelConfig
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.hf import peft, qwen_config, tensor_names
from ttt_jax.model import lora, sharding
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import files, folder_copies, owned, safetensors_io, schema
from ttt_jax.system.version import git_revision, version
from ttt_jax.tokens import hf_tokenizer, tokenizer as tokenizers
from ttt_jax.tokens.tokenizer import BpeTokenizer
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import checkpoint, ownership, state as train_state
from ttt_jax.train.loop import RunProgress

ORIGIN = 'imported'     # folder in the workdir with the small files of the directory
IMPORT = 'import.json'  # the report, in that folder
NOISE = 0.02            # of new rows, in standard deviations of the old rows, per column
_KEPT = ('config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json',
         'vocab.json', 'merges.txt', '*.tiktoken', 'LICENSE')
# What is fetched of a directory in a bucket: first what is checked, then all.
SMALL = (*_KEPT, safetensors_io.INDEX)
PATTERNS = (*SMALL, '*.safetensors')
_ROWS = 4096            # rows of a table per pass over it


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
                 f'{self.kept:,} to {self.size - 1:,} their mean plus noise of {NOISE} standard '
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
  """The parameters of ``model`` from a directory whose config.json fits it.

  Args:
    directory: with safetensors.
    model: of the size and vocabulary to load.
    mesh: of the parameters.
    dtype: of the parameters; '' = as in the directory: bfloat16 if all tensors are, else
      float32.
    seed: of the noise in new rows of the vocabulary.
    rows: of its embedding table, from its config.json; None = any number.

  Returns:
    (parameters, report).

  Raises:
    UserError: a tensor is missing, unexpected, of another shape, or unreadable, or has numbers
      that are not finite.
  """
  folder = safetensors_io.Folder(directory)
  plan = tensor_names.tensors(model)
  _check(folder, plan, model.config.tie_word_embeddings, rows)
  found = {folder[name].dtype for name in plan}
  source = found.pop().name if len(found) == 1 else 'mixed'
  dtype = dtype or ('bfloat16' if source == 'bfloat16' else 'float32')
  shapes = lora.without(jax.eval_shape(model.init, jax.random.key(0)))
  places = sharding.shardings(mesh, lora.without(model.axes()), shapes)
  leaves: dict[tuple[str, ...], jax.Array] = {}
  for name, array in safetensors_io.read_ahead(folder, (name for name in folder if name in plan)):
    tensor = plan[name]
    shape, place = tensor_names.leaf(shapes,
                                     tensor.path).shape, tensor_names.leaf(places, tensor.path)
    if tensor.is_table:
      leaves[tensor.path] = _table(array, name, shape, model.vocab_size, place, dtype, seed)
    elif tensor.layer is None:
      leaves[tensor.path] = _put(array, place).astype(dtype)
    else:
      before = leaves.pop(tensor.path, None)
      leaves[tensor.path] = _into(before, array, tensor, shape, place, dtype)
  rows = folder[tensor_names.EMBEDDING].shape[0]
  report = Report(str(directory), len(plan), sum(folder[name].nbytes // folder[name].dtype.itemsize
                                                 for name in plan),
                  source, rows, min(rows, model.vocab_size), model.vocab_size)
  return tensor_names.nested({tensor.path: leaves[tensor.path] for tensor in plan.values()}), report


def _check(folder: safetensors_io.Folder, plan: dict[str, tensor_names.Tensor], tied: bool,
           rows: int | None) -> None:
  """Raise UserError unless the directory has exactly the tensors of the plan."""
  missing = [name for name in plan if name not in folder]
  if missing:
    raise UserError(f'{folder.directory} lacks {_some(missing)}; the download is incomplete, or '
                    'config.json belongs to another model.')
  extra = [name for name in folder if name not in plan]
  if tied and tensor_names.HEAD in extra and _same_bytes(folder, tensor_names.HEAD,
                                                         tensor_names.EMBEDDING):
    extra.remove(tensor_names.HEAD)  # a tied head that was written as well
  if extra:
    raise UserError(f'{folder.directory} also has {_some(extra)}, which a Qwen2 model with its '
                    'config.json does not; config.json belongs to another model.')
  for name, tensor in plan.items():
    shape = folder[name].shape
    if tensor.is_table and shape[:1] != (rows,) and rows is not None:
      raise UserError(f'tensor {name} in {folder[name].file} has shape {list(shape)}; its '
                      f'config.json asks for vocab_size = {rows:,} rows.')
    if shape[1:] != tensor.shape[1:] or (not tensor.is_table and shape != tensor.shape):
      raise UserError(f'tensor {name} in {folder[name].file} has shape {list(shape)}; its '
                      f'config.json asks for {list(tensor.shape)}.')
  if not tied and folder[tensor_names.HEAD].shape != folder[tensor_names.EMBEDDING].shape:
    raise UserError(f'tensor {tensor_names.HEAD} in {folder[tensor_names.HEAD].file} has '
                    f'{folder[tensor_names.HEAD].shape[0]:,} rows and {tensor_names.EMBEDDING} has '
                    f'{folder[tensor_names.EMBEDDING].shape[0]:,}; the two numbers must be equal.')


def _some(names: list[str]) -> str:
  rest = f' and {len(names) - 1} more' if len(names) > 1 else ''
  return f'tensor {names[0]}{rest}'


def _same_bytes(folder: safetensors_io.Folder, one: str, other: str) -> bool:
  return (folder[one].shape == folder[other].shape and folder[one].dtype == folder[other].dtype
          and safetensors_io.checksum(folder, one) == safetensors_io.checksum(folder, other))


# -- onto the mesh ------------------------------------------------------------------------


def _put(array: np.ndarray, place: NamedSharding) -> jax.Array:
  """A host array that every process has, as a global array on the mesh."""
  return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def _into(stacked: jax.Array | None, array: np.ndarray, tensor: tensor_names.Tensor,
          shape: tuple[int, ...], place: NamedSharding, dtype: str) -> jax.Array:
  """The stacked parameter with one layer's slice written; ``stacked`` is donated."""
  spec = list(place.spec[1:]) + [None] * (len(shape) - len(place.spec))
  spec = spec[::-1] if tensor.transposed else spec
  slice_place = NamedSharding(place.mesh, PartitionSpec(*spec))
  if stacked is None:
    stacked = _zeros(shape, place, dtype)()
  # Wait: dispatch is asynchronous, and the host must not hold more than one tensor.
  return jax.block_until_ready(
      _writer(place, tensor.transposed)(stacked, _put(array, slice_place), tensor.layer))


@functools.lru_cache(maxsize=None)
def _zeros(shape: tuple[int, ...], place: NamedSharding, dtype: str):
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=place)


@functools.lru_cache(maxsize=None)
def _writer(place: NamedSharding, transposed: bool):
  def write(stacked, array, layer):
    array = (array.T if transposed else array).astype(stacked.dtype)
    return jax.lax.dynamic_update_index_in_dim(stacked, array, layer, 0)
  return jax.jit(write, donate_argnums=0, out_shardings=place)


def _table(array: np.ndarray, name: str, shape: tuple[int, ...], size: int,
           place: NamedSharding, dtype: str, seed: int) -> jax.Array:
  """Embedding or head [rows, E]: the directory's rows, new rows, and padding rows of zeros."""
  kept = min(array.shape[0], size)
  table = np.zeros(shape, array.dtype)
  table[:kept] = array[:kept]
  if kept < size:
    _fill(table, kept, size, np.random.default_rng([seed, len(name)]))
  return _put(table, place).astype(dtype)


def _fill(table: np.ndarray, kept: int, size: int, random: np.random.Generator) -> None:
  """Write rows kept .. size - 1: the mean of the old rows plus noise. The mean keeps new logits
  in the range of the old ones (Hewitt, "Initializing new word embeddings for pretrained language
  models", 2021); the noise makes the new rows different from each other."""
  width = table.shape[1]
  total, squares = np.zeros(width), np.zeros(width)
  for at in range(0, kept, _ROWS):
    rows = table[at:min(at + _ROWS, kept)].astype(np.float32)
    total += rows.sum(axis=0, dtype=np.float64)
    squares += np.einsum('re,re->e', rows, rows)
  mean = total / kept
  spread = np.sqrt(np.maximum(squares / kept - mean**2, 0))
  for at in range(kept, size, _ROWS):
    rows = table[at:min(at + _ROWS, size)]
    noise = random.standard_normal(rows.shape, dtype=np.float32)
    rows[:] = (mean + NOISE * spread * noise).astype(table.dtype)


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
  named, directory = str(directory), folder_copies.folder(directory, SMALL, '--hf')
  values = qwen_config.read(directory)
  workdir = pathlib.Path(workdir)
  _check_origin(workdir / ORIGIN, directory)
  data_dir = store.locate(workdir, config.data.path)
  vocab = store.vocabulary(data_dir)
  store.check_data(config, data_dir, vocab)
  qwen_config.compare(values, config.model, directory)
  qwen_config.check_vocabulary(values, vocab, directory)
  _check_text(directory, config, vocab)
  model = Model(config.model, vocab.size)
  mesh = train_state.reading_mesh(model, config.mesh)  # the run may train on other machines
  config_lib.check_saved(workdir)
  with ownership.owned(workdir), checkpoint.Checkpoints(workdir / 'checkpoints') as checkpoints:
    newest = checkpoints.recover()
    if newest is not None:
      again = checkpoints.meta(newest).get('imported') or {}
      if (newest == 0 and schema.fits(again, ReportFile) and again['directory'] == named
          and not (workdir / ORIGIN / IMPORT).exists()):  # killed before the small files
        known = {field.name for field in dataclasses.fields(Report)}
        report = Report(**{key: value for key, value in again.items() if key in known})
        _keep_small_files(config, workdir, directory, report)
        return report
      raise UserError(f'{checkpoints.directory} has checkpoint {newest} already; import into '
                      'another workdir, or remove that folder.')
    small, directory = directory, folder_copies.folder(named, PATTERNS, '--hf')
    params, report = load(directory, model, mesh, dtype, config.seed, values['vocab_size'])
    report = dataclasses.replace(report, directory=named)
    if adapter:
      params, base = peft.load(folder_copies.folder(adapter, peft.PATTERNS, '--adapter'), model,
                               mesh, params)
      report = dataclasses.replace(report, adapter=str(adapter), adapter_base=base)
    # First the small files: once the checkpoint is complete, the import is.
    _keep_small_files(config, workdir, small, report)
    checkpoints.save(0, train_state.TrainState(None, params, None), _note(config, vocab, report))
    checkpoints.wait()
  return report


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
  if jax.process_index():
    return
  config_lib.save(config, workdir)
  with owned.Building(workdir / ORIGIN, 'an earlier import', '--workdir', _earlier) as building:
    with files.writing(workdir / ORIGIN):
      for path in (path for pattern in _KEPT for path in directory.glob(pattern)):
        shutil.copyfile(path, building.folder / path.name)
    files.write_text(building.folder / IMPORT,
                     json.dumps(dataclasses.asdict(report), indent=2) + '\n')
    building.commit()
