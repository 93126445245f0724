"""Export a checkpoint as a Hugging Face directory that runs in PyTorch, or as a PEFT adapter.

  OUT/config.json, generation_config.json    Qwen2's fields and those of Text-to-Talk
  OUT/model*.safetensors (and their index)   tensors under Qwen2's names, without padding rows
  OUT/tokenizer.json, tokenizer_config.json  with the audio vocabulary and a chat template
  OUT/modeling_ttt.py ...                    the PyTorch side (hf/torch_code)
  OUT/codec.json, codec.npz                  the codec, if it is 'mel' or 'codec2'
  OUT/README.md, training.json               the model card, and its contents as JSON

Everything is written to a temporary folder beside OUT, read back and compared, and renamed last,
so OUT is complete or absent. An export that is replaced must be ours, file by file. For a bucket
the folder is made in the cache and uploaded, config.json and training.json last.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax.audio import codec as codecs
from ttt_jax.config import Config, LoraConfig
from ttt_jax.errors import UserError
from ttt_jax.hf import import_hf, model_card, peft, qwen_config, tensor_names
from ttt_jax.model import lora, staircase
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import files, owned, publish, remote, safetensors_io, schema, url_path
from ttt_jax.tokens import hf_tokenizer
from ttt_jax.tokens.batch import make_row, stack
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import trained_model

PARTS = ('merged', 'base', 'adapter')
FACTS = 'training.json'  # its presence identifies a folder as an export
_KIND = 'an earlier export'
# Uploaded last: without them a folder is no model, and without FACTS no export that is complete.
_HEADS = (peft.CONFIG, qwen_config.CONFIG, FACTS)
TOLERANCE = 1e-5         # of the probe's logits, relative to the largest
_SMALL = {FACTS, 'README.md', qwen_config.CONFIG, 'generation_config.json', 'tokenizer.json',
          'tokenizer_config.json', safetensors_io.INDEX, peft.CONFIG}
SHARD = 5 * 10**9        # bytes, as transformers writes them
CODE = pathlib.Path(__file__).with_name('torch_code')
EMBEDDED = ('mel', 'codec2')  # codecs that torch_code/ttt_codec.py decodes


def export_hf(config: Config, workdir: str | os.PathLike, out: str | os.PathLike, *,
              dtype: str = '', part: str = 'merged', base: str = '', overwrite: bool = False,
              shard_bytes: int = SHARD, step: int | None = None) -> dict[str, Any]:
  """Export a checkpoint of a run.

  Args:
    config, workdir: of the run.
    out: a folder that does not exist, or is empty; or its URL in a bucket.
    dtype: of the tensors: 'float32', 'bfloat16' or 'float16'; '' = as in the checkpoint.
    part: of a run with adapters: 'merged', the 'base' without them, or the 'adapter' alone as
      a PEFT directory.
    base: of an adapter: the name or folder of what ``part='base'`` wrote, which
      adapter_config.json then names; '' leaves its base_model_name_or_path empty. The directory
      that was imported is not it: it lacks the new rows of the vocabulary.
    overwrite: replace an earlier export at ``out``.
    shard_bytes: maximum size of a safetensors file.
    step: of the checkpoint; None = the newest.

  Returns:
    The contents of training.json: step, parameters, tensors, dtype, files and more.

  Raises:
    UserError: no checkpoint, ``out`` is not empty, a disk that is full or cannot be written, files
      that read back differently from what was written, or a bucket that refuses them.
    RetryableError: the bucket cannot be reached.
  """
  url = remote.check(str(out), '--out') if remote.is_url(out) else ''
  if url:
    publish.check(url, _KIND, '--out', _earlier, 'export')
  out = publish.assembly(url) if url else pathlib.Path(out).absolute()
  building = owned.Building(out, _KIND, '--out', _earlier)
  place = url_path.place(url or out)
  if (place / FACTS).exists() and not overwrite:
    raise UserError(f'{place} holds an earlier export; add --overwrite to replace it, or choose '
                    'another --out.')
  files.require_writable(building.target.parent)
  if part == 'adapter' and not config.model.lora.rank:
    raise UserError('config key model.lora.rank is 0, so there is no adapter to export; leave out '
                    '--part adapter.')
  if base and part != 'adapter':
    raise UserError('--base has no effect without --part adapter; remove it.')
  run = trained_model.load(config, workdir, dtype=None, step=step)
  if base:
    _check_base(base, run)
  kept = 'the export is made there before it is uploaded (TTT_JAX_CACHE)' if url else ''
  with building, files.writing(out, kept):
    folder = building.folder
    if part == 'adapter':
      facts = _adapter(run, pathlib.Path(workdir), folder, base)
    else:
      facts = _model(run, pathlib.Path(workdir), folder, dtype, part, shard_bytes)
    _write(folder / FACTS, json.dumps(facts, indent=2))
    _write(folder / 'README.md', model_card.text(facts))
    building.commit()
  if url:
    try:
      publish.publish(out, url, _HEADS)
    finally:
      owned.remove(out)
  return facts


def _earlier(folder: pathlib.Path) -> set[str]:
  """The files of an export without a marker that its training.json proves to be ours."""
  try:
    facts = schema.read(folder / FACTS, EarlierFacts, '')
  except UserError:
    return set()
  named = set(facts['files'])
  return named and named | _SMALL | {path.name for path in CODE.glob('*.py')}


class EarlierFacts(schema.Kind):
  """The fields of training.json that every version wrote."""
  step: schema.Count
  part: str
  dtype: str
  files: list[schema.Name]


def _check_base(base: str, run: trained_model.TrainedModel) -> None:
  """UserError if ``base`` is a folder of this machine and not the base of the run."""
  path = url_path.place(base)
  if not path.is_dir():
    return  # a name at a hub, or the place where the folder will be
  known = schema.read(path / FACTS, FactsFile, 'name a folder that `ttt-jax export-hf --part base` '
                      'wrote')
  if (known['part'], known['fingerprint']) != ('base', run.vocab.fingerprint):
    raise UserError(f'--base {base} is the part {known["part"]!r} of a model with vocabulary '
                    f'{known["fingerprint"]}; the adapter needs the part \'base\' with vocabulary '
                    f'{run.vocab.fingerprint}.')


class FactsFile(schema.Kind):
  """The fields of training.json that are read."""
  part: str
  fingerprint: str


def _write(path: pathlib.Path, text: str) -> None:
  path.write_text(text.rstrip('\n') + '\n', encoding='utf-8')


# -- a model ------------------------------------------------------------------------------


def _model(run: trained_model.TrainedModel, workdir: pathlib.Path, folder: pathlib.Path, dtype: str,
           part: str, shard_bytes: int) -> dict[str, Any]:
  """Write a model's directory and verify it; returns the contents of training.json."""
  config, vocab = run.config, run.vocab
  model = Model(dataclasses.replace(config.model, lora=LoraConfig(), dtype='float32'), vocab.size)
  _check_finite(run, lora.without(run.params) if part == 'base' else run.params)
  dtype = dtype or model_card.imported(workdir, run.step).get('dtype', '')
  dtype = dtype if dtype in ('float16', 'bfloat16', 'float32') else run.params[
      'trunk']['embedding'].dtype.name
  params = _converted(run.params, config.model.lora if part == 'merged' else None, dtype)
  expected = probe(model, params, vocab)
  writer = safetensors_io.Writer(folder, (
      safetensors_io.Plan(tensor.name, tensor.shape, np.dtype(dtype))
      for tensor in tensor_names.tensors(model).values()), shard_bytes)
  writer.write(_source(model, params))
  kinds = jax.tree.leaves(params)[0].sharding.mesh
  del params
  origin = schema.read(workdir / import_hf.ORIGIN / qwen_config.CONFIG, None,
                       'restore it from the imported directory', optional=True)
  _write(folder / qwen_config.CONFIG,
         json.dumps(qwen_config.write(config, vocab, dtype, origin), indent=2))
  _write(folder / 'generation_config.json',
         json.dumps(qwen_config.write_generation(config, vocab), indent=2))
  hf_tokenizer.write(vocab, run.tokenizer, folder)
  for path in sorted(CODE.glob('*.py')):
    shutil.copyfile(path, folder / path.name)
  speaks = codecs.kind_of(type(run.codec)) in EMBEDDED
  if speaks:
    run.codec.save(folder)
  _verify(folder, model, kinds, writer, vocab, expected)
  return model_card.facts(run, workdir, part) | {
      'dtype': dtype, 'tensors': len(writer.sums), 'files': writer.names(), 'codec': speaks,
      'parameters': sum(int(np.prod(t.shape)) for t in tensor_names.tensors(model).values())}


def _check_finite(run: trained_model.TrainedModel, params: Params) -> None:
  """UserError if a parameter is NaN or infinite."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    if not bool(_is_finite(leaf)):
      name = '/'.join(str(getattr(key, 'key', key)) for key in path)
      raise UserError(f'checkpoint {run.step} has numbers in {name} that are NaN or infinite; a '
                      'model with such weights computes nothing, so export an earlier checkpoint.')


@jax.jit
def _is_finite(leaf: jax.Array) -> jax.Array:
  return jnp.isfinite(leaf).all()


def _converted(params: Params, merged: LoraConfig | None, dtype: str) -> Params:
  """Parameters without adapters, in another dtype. ``params`` is emptied leaf by leaf, so that two
  copies of all parameters never exist at once.

  Args:
    merged: settings of the adapters to merge; None drops the adapters.
  """
  out = {}
  for key in list(params):
    value = params.pop(key)
    if isinstance(value, dict):
      if merged is not None and lora.A in value:
        value = lora.merge(value, merged)
      out[key] = _converted(value, merged, dtype)
    elif key not in (lora.A, lora.B):
      out[key] = value.astype(dtype)
  return out


def _source(model: Model, params: Params) -> Callable[[str], np.ndarray]:
  """A function from a tensor's name to the tensor, on the host."""
  plan = tensor_names.tensors(model)
  def get(name: str) -> np.ndarray:
    tensor = plan[name]
    leaf = tensor_names.leaf(params, tensor.path)
    if tensor.layer is None:
      return np.asarray(leaf[:tensor.shape[0]])
    return np.asarray(_slice(leaf, tensor.layer, tensor.transposed))
  return get


@functools.partial(jax.jit, static_argnums=2)
def _slice(stacked: jax.Array, layer: int, transposed: bool) -> jax.Array:
  return stacked[layer].T if transposed else stacked[layer]


def probe(model: Model, params: Params, vocab: Vocabulary) -> np.ndarray:
  """float32 [tokens, vocab]: logits of a short document with text and one span of audio."""
  text = np.linspace(0, vocab.text_ranks - 1, 5).astype(int).tolist()
  codes = np.linspace(vocab.code_start, vocab.mask - 1, 5).astype(int).tolist()
  ids = np.array([vocab.im_start, *text, vocab.begin_of_audio, *codes, vocab.mask,
                  vocab.end_of_chunk, vocab.im_end])
  batch = stack([make_row(vocab, [(1, ids, np.ones_like(ids))], ids.size)])
  start, end = staircase.key_ranges(batch)
  @jax.jit
  def run(params):
    return model.logits(params, model.hidden(params, batch.token, batch.position, start, end))
  return np.asarray(run(params))[0]


def _verify(folder: pathlib.Path, model: Model, mesh: Any, writer: safetensors_io.Writer,
            vocab: Vocabulary, expected: np.ndarray) -> None:
  """Read the directory as an import would, and compare tensors and logits.

  Raises:
    UserError: a tensor is missing or differs, or the logits of ``probe`` differ.
  """
  found = safetensors_io.Folder(folder)
  tensors = tensor_names.tensors(model)
  sums = safetensors_io.checksums(found, (name for name in tensors if name in found))
  for name, tensor in tensors.items():
    if name not in found or found[name].shape != tensor.shape or sums[name] != writer.sums[name]:
      raise UserError(f'tensor {name} in {folder} differs from what was written; the disk may be '
                      'damaged, so export to another one.')
  qwen_config.compare(qwen_config.read(folder), model.config, folder)
  params, _ = import_hf.load(folder, model, mesh)
  difference = np.abs(probe(model, params, vocab) - expected).max()
  if len(found) != len(writer.sums) or not difference <= TOLERANCE * np.abs(expected).max():
    raise UserError(f'the model read back from {folder} gives other logits than the checkpoint; '
                    'the disk may be damaged, so export to another one.')


# -- an adapter ---------------------------------------------------------------------------


def _adapter(run: trained_model.TrainedModel, workdir: pathlib.Path, folder: pathlib.Path,
             base: str) -> dict[str, Any]:
  """Write a PEFT directory and verify it; returns the contents of training.json."""
  model = Model(run.config.model, run.vocab.size)
  adapters = lora.adapters(run.params)
  _check_finite(run, adapters)
  count = peft.save(folder, model, adapters, base or None)
  mesh = jax.tree.leaves(adapters)[0].sharding.mesh
  again, _ = peft.load(folder, model, mesh, {})
  same = jax.tree.map(lambda one, other: np.array_equal(np.asarray(one), np.asarray(other)),
                      adapters, again)
  if not all(jax.tree.leaves(same)):
    raise UserError(f'the adapter read back from {folder} differs from what was written; the disk '
                    'may be damaged, so export to another one.')
  return model_card.facts(run, workdir, 'adapter') | {
      'adapter_base': base,
      'dtype': 'float32', 'tensors': count, 'files': [peft.WEIGHTS],
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(adapters))}
