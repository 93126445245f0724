"""Export a checkpoint as a Hugging Face directory that runs in PyTorch, or as a PEFT adapter.

  OUT/config.json, generation_config.json    Qwen2's fields and those of Text-to-Talk
  OUT/model*.safetensors (and their index)   tensors under Qwen2's names, without padding rows
  OUT/tokenizer.json, tokenizer_config.json  with the audio vocabulary and a chat template
  OUT/modeling_ttt.py ...                    the PyTorch side (hf/torch_code)
  OUT/codec.json, codec.npz                  the codec, if it is 'mel' or 'codec2'
  OUT/README.md, training.json               the model card, and its contents as JSON

It is read back and compared before it is complete (export_target.py). Several processes write the
safetensors files among them (write_weights.py); process 0 writes the others.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from ttt_jax.audio import codec as codecs
from ttt_jax.config import Config, LoraConfig
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.hf import (
    export_target, import_hf, model_card, peft, qwen_config, tensor_names, write_weights)
from ttt_jax.hf.export_target import CODE, FACTS, Target
from ttt_jax.model import lora, staircase
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import safetensors_io, schema, url_path
from ttt_jax.tokens import hf_tokenizer, tokenizer as tokenizers
from ttt_jax.tokens.batch import make_row, stack
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import checkpoint, state as train_state, together, trained_model

PARTS = ('merged', 'base', 'adapter')
TOLERANCE = 1e-5         # of the probe's logits, relative to the largest
SHARD = 5 * 10**9        # bytes, as transformers writes them
EMBEDDED = ('mel', 'codec2')  # codecs that torch_code/ttt_codec.py decodes
_Verify = Callable[[pathlib.Path], None]


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
  together.run(lambda: _check_flags(config, part, base))
  with export_target.opened(out, overwrite) as target:
    mesh, known = together.run(lambda: _inputs(config, workdir))
    together.same(known, f'the checkpoints and the vocabulary in {workdir} are',
                  'all processes must see the same workdir, on a shared disk or in a bucket')
    run = trained_model.load(config, workdir, dtype=None, mesh=mesh, step=step)
    if base:
      together.run(lambda: _check_base(base, run))
    workdir = pathlib.Path(workdir)
    facts, verify = (_adapter(run, workdir, target, base) if part == 'adapter'
                     else _model(run, workdir, target, dtype, part, shard_bytes))
    def describe() -> None:
      with target.writing():
        _write(target.folder / FACTS, json.dumps(facts, indent=2))
        _write(target.folder / 'README.md', model_card.text(facts))
    together.run_in_first(describe)
    target.finish(verify)
  return facts


def _check_flags(config: Config, part: str, base: str) -> None:
  if part == 'adapter' and not config.model.lora.rank:
    raise UserError('config key model.lora.rank is 0, so there is no adapter to export; leave out '
                    '--part adapter.')
  if base and part != 'adapter':
    raise UserError('--base has no effect without --part adapter; remove it.')


def _inputs(config: Config, workdir: str | os.PathLike) -> tuple[Mesh, str]:
  """(mesh of the weights, what all processes must see)."""
  folder = pathlib.Path(workdir)
  vocab = store.vocabulary(store.locate(folder, config.data.path))
  mesh = train_state.converting_mesh(Model(config.model, vocab.size), config.mesh)
  steps = checkpoint.open_existing(folder / 'checkpoints').steps()
  if not together.single():  # what one process lacks, the others must know before they load
    tokenizers.create(config.vocab)
    trained_model.codec_of(config, store.locate(folder, config.data.path), vocab)
  return mesh, f'{steps} and {vocab.fingerprint}'


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


def _model(run: trained_model.TrainedModel, workdir: pathlib.Path, target: Target, dtype: str,
           part: str, shard_bytes: int) -> tuple[dict[str, Any], _Verify]:
  """Write a model's directory; returns the contents of training.json, and what verifies it."""
  config, vocab = run.config, run.vocab
  model = Model(dataclasses.replace(config.model, lora=LoraConfig(), dtype='float32'), vocab.size)
  write_weights.check_finite(run.step, lora.without(run.params) if part == 'base' else run.params)
  kept = together.run(lambda: model_card.imported(workdir, run.step)).get('dtype', '')
  dtype = dtype or kept
  dtype = dtype if dtype in ('float16', 'bfloat16', 'float32') else run.params[
      'trunk']['embedding'].dtype.name
  params = write_weights.converted(
      run.params, config.model.lora if part == 'merged' else None, dtype)
  expected = probe(model, params, vocab)
  writer = write_weights.write(target.folder, model, params, dtype, shard_bytes, target.writing)
  mesh = write_weights.mesh_of(params)
  del params
  speaks = codecs.kind_of(type(run.codec)) in EMBEDDED
  def small_files() -> dict[str, Any]:
    with target.writing():
      _small_files(run, workdir, target.folder, dtype)
      if speaks:
        run.codec.save(target.folder)
    return model_card.facts(run, workdir, part)
  # All processes need the facts; the others write nothing.
  facts = together.run(small_files if together.is_first() else
                       lambda: model_card.facts(run, workdir, part))
  tensors = tensor_names.tensors(model)
  return facts | {
      'dtype': dtype, 'tensors': len(tensors), 'files': writer.names(), 'codec': speaks,
      'parameters': sum(int(np.prod(t.shape)) for t in tensors.values())}, (
          lambda place: _verify(place, target.folder, model, mesh, writer, vocab, expected))


def _small_files(run: trained_model.TrainedModel, workdir: pathlib.Path, folder: pathlib.Path,
                 dtype: str) -> None:
  """Everything but tensors and codec."""
  origin = schema.read(workdir / import_hf.ORIGIN / qwen_config.CONFIG, None,
                       'restore it from the imported directory', optional=True)
  _write(folder / qwen_config.CONFIG,
         json.dumps(qwen_config.write(run.config, run.vocab, dtype, origin), indent=2))
  _write(folder / 'generation_config.json',
         json.dumps(qwen_config.write_generation(run.config, run.vocab), indent=2))
  hf_tokenizer.write(run.vocab, run.tokenizer, folder)
  for path in sorted(CODE.glob('*.py')):
    shutil.copyfile(path, folder / path.name)


def probe(model: Model, params: Params, vocab: Vocabulary) -> np.ndarray:
  """float32 [tokens, vocab]: logits of a short document with text and one span of audio."""
  text = np.linspace(0, vocab.text_ranks - 1, 5).astype(int).tolist()
  codes = np.linspace(vocab.code_start, vocab.mask - 1, 5).astype(int).tolist()
  ids = np.array([vocab.im_start, *text, vocab.begin_of_audio, *codes, vocab.mask,
                  vocab.end_of_chunk, vocab.im_end])
  batch = stack([make_row(vocab, [(1, ids, np.ones_like(ids))], ids.size)])
  start, end = staircase.key_ranges(batch)
  def run(params):
    return model.logits(params, model.hidden(params, batch.token, batch.position, start, end))
  return np.asarray(write_weights.everywhere(run, params)(params))[0]


def _verify(place: pathlib.Path, own_folder: pathlib.Path, model: Model, mesh: Mesh,
            writer: safetensors_io.Writer, vocab: Vocabulary, expected: np.ndarray) -> None:
  """Read the directory as an import would, and compare tensors and logits; in all processes.

  Args:
    place: of all files.
    own_folder: of the files that this process has written.
    expected: logits of ``probe``.

  Raises:
    UserError: a tensor is missing or differs, or the logits differ.
  """
  def compare() -> None:
    writer.check(own_folder)
    if together.is_first():
      qwen_config.compare(qwen_config.read(own_folder), model.config, own_folder)
  together.run(compare)
  params, _ = import_hf.load(place, model, mesh)
  difference = np.abs(probe(model, params, vocab) - expected).max()
  if not difference <= TOLERANCE * np.abs(expected).max():
    raise UserError(f'the model read back from {place} gives other logits than the checkpoint; '
                    'the disk may be damaged, so export to another one.')


# -- an adapter ---------------------------------------------------------------------------


def _adapter(run: trained_model.TrainedModel, workdir: pathlib.Path, target: Target,
             base: str) -> tuple[dict[str, Any], _Verify]:
  """Write a PEFT directory and verify it; returns the contents of training.json."""
  model = Model(run.config.model, run.vocab.size)
  adapters = lora.adapters(run.params)
  write_weights.check_finite(run.step, adapters)
  host = jax.tree.map(write_weights.on_host, adapters)
  def write() -> None:
    with target.writing():
      peft.save(target.folder, model, host, base or None)
    again = peft.read(target.folder, model)[1]
    if not all(jax.tree.leaves(jax.tree.map(np.array_equal, host, again))):
      raise UserError(f'the adapter read back from {target.folder} differs from what was written; '
                      'the disk may be damaged, so export to another one.')
  together.run_in_first(write)
  return together.run(lambda: model_card.facts(run, workdir, 'adapter')) | {
      'adapter_base': base,
      'dtype': 'float32', 'tensors': len(peft.plan(model)), 'files': [peft.WEIGHTS],
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(adapters))}, lambda place: None
