"""The kinds of files that `make fuzz` damages: how one is made, and how the program opens it."""

from collections.abc import Callable
import dataclasses
import json
import pathlib

import jax
import numpy as np

from tests.hf import directories
from ttt_jax import config as config_lib
from ttt_jax.audio import codec as codecs
from ttt_jax.audio.glm4 import checkpoint as glm4
from ttt_jax.audio.mel_codec import MELS, MelCodec
from ttt_jax.config import Config, LoraConfig, MeshConfig, ModelConfig
from ttt_jax.data import store
from ttt_jax.hf import import_hf, peft
from ttt_jax.model import lora, sharding
from ttt_jax.model.transformer import Model
from ttt_jax.runs import status, supervisor, sweep_table
from ttt_jax.runs.report import page
from ttt_jax.storage import safetensors_io
from ttt_jax.tokens import bpe_ranks, hf_tokenizer
from ttt_jax.tokens.batch import make_row
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import checkpoint, metrics
from ttt_jax.train.state import TrainState

VOCAB = Vocabulary('bytes', 256, 'codes-20', 20)
SIZE = ModelConfig(**directories.SMALL)
ADAPTED = dataclasses.replace(SIZE, lora=LoraConfig(rank=2, alpha=4.0))
NOW = 2e9


@dataclasses.dataclass(frozen=True)
class Scene:
  """A kind of file.

  Attributes:
    make: writes an intact scene into an existing folder.
    files: file in the scene -> its kind, for fuzz_damage.harm.
    open: reads the scene as the commands do.
  """
  make: Callable[[pathlib.Path], None]
  files: dict[str, str]
  open: Callable[[pathlib.Path], object]


def _json(path: pathlib.Path, values) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(values))


def _workdir(folder: pathlib.Path) -> None:
  """The files of a run that `status` and `report` read."""
  _json(folder / 'config.json', config_lib.to_dict(Config(model=SIZE)))
  _json(folder / 'status.json', {
      'state': 'running', 'step': 8, 'steps': 20, 'time': NOW - 9, 'rate': 2.5,
      'last_good_checkpoint': 5, 'last_good_time': NOW - 20, 'time_split': {'step': 3.0, 'data': 1},
      'errors': [{'time': NOW - 30, 'step': 3, 'text': 'skipped'}], 'pid': 1, 'host': 'n1',
      'process_count': 2})
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps({
      'step': step, 'time': NOW - 60 + step, 'loss': 3.0, 'ar': 1.0, 'diffusion': 2.0,
      'time/total': 9.0, 'time/step': 0.5, 'useful_tokens_per_second': 80.0}) + '\n'
                                              for step in range(1, 9)))
  _json(folder / 'evaluation.json', {
      'step': 8, 'summary': {'asr_wer_generated': 0.5, 'asr_wer_reference': 0.1, 'text_nll': 1.5},
      'table': [['text loss', '1.500', 'nats'], ['none', None, '']],
      'samples': [{'task': 'asr', 'id': 'a', 'question_text': 'x', 'reference_text': 'x',
                   'generated_text': 'y', 'heard_text': None, 'correct': False,
                   'audio': {'question': None, 'generated': 'samples/a.generated.wav'}}]})


def _sweep(folder: pathlib.Path) -> None:
  _json(folder / 'sweep.json', {'evaluate': True, 'members': [
      {'name': 'm0', 'overrides': {'optimizer.learning_rate': 1e-3}},
      {'name': 'm1', 'overrides': {'optimizer.learning_rate': 1e-4}}]})
  (folder / 'm0').mkdir()
  _workdir(folder / 'm0')
  _json(folder / 'm0' / 'member.json', {
      'state': 'running', 'error': '', 'started': NOW - 100,
      'settings': config_lib.to_dict(Config(model=SIZE))})


def _set(folder: pathlib.Path) -> None:
  token = np.array([1, 2, VOCAB.begin_of_quad, *VOCAB.encode_codes([1, 2, 3]), VOCAB.end_of_last,
                    VOCAB.im_end], np.int32)
  rows = [make_row(VOCAB, [(number, token, np.ones_like(token))], 16) for number in (1, 2)]
  store.write_rows(folder / 'train.arrayrecord', rows)
  store.write_manifest(folder, {
      'version': store.VERSION, 'vocabulary': VOCAB.to_dict(), 'fingerprint': VOCAB.fingerprint,
      'codec': 'codec', 'seq_len': 16, 'max_document': 2, 'rejects': {'too long': 1},
      'heldout_overlap': 0, 'system_prompts': {'asr': 'Write.'}, 'splits': {'train': {
          **store.split_entry((folder / 'train.arrayrecord', 2)), 'documents': 2, 'truncated': 0,
          'padding': 0.5, 'tokens': {'text': 4, 'audio': 8}, 'tasks': {'asr': {
              'records': 2, 'text': 4, 'audio': 8, 'supervised': 8}},
          'lengths': {'edges': [1, 17], 'documents': [2]}}}})


def _open_set(folder: pathlib.Path) -> None:
  store.vocabulary(folder)
  store.check_data(config_lib.from_dict(Config, {'data': {'seq_len': 16}}), folder, VOCAB)
  rows = store.Rows(folder, 'train')
  for index in range(len(rows)):
    rows[index]


def _codec(folder: pathlib.Path) -> None:
  books = np.random.default_rng(0).standard_normal((2, 8, 2 * MELS)).astype(np.float16)
  MelCodec(books, 2, 1.5).save(folder)


def _open_codec(folder: pathlib.Path) -> None:
  codec = codecs.load(folder)
  codec.sound(np.arange(codec.codebook_size)[:4])


def _checkpoint(folder: pathlib.Path) -> None:
  with checkpoint.Checkpoints(folder / 'checkpoints') as checkpoints:
    for step in (5, 8):
      checkpoints.save(step, TrainState(None, {'w': jax.numpy.ones(4)}, None), {
          'data': {'next': step}, 'seconds': {'step': 1.0}, 'config': config_lib.to_dict(Config()),
          'progress': {'step': step, 'offset': 0, 'best': None}, 'revision': '', 'version': '0.2',
          'vocabulary': VOCAB.to_dict(), 'fingerprint': VOCAB.fingerprint})
      checkpoints.wait()


def _open_checkpoint(folder: pathlib.Path) -> None:
  supervisor.newest_checkpoint(folder)
  target = {'w': jax.ShapeDtypeStruct((4,), 'float32', sharding=jax.sharding.SingleDeviceSharding(
      jax.devices()[0]))}
  with checkpoint.open_existing(folder / 'checkpoints') as checkpoints:
    step = checkpoints.newest_good()
    checkpoints.check_vocabulary(step, VOCAB)
    checkpoints.meta(step)
    checkpoints.restore_params(step, target)
  with checkpoint.Checkpoints(folder / 'checkpoints', log=lambda text: None) as checkpoints:
    step = checkpoints.recover()
    if step is not None:
      checkpoints.meta(step)


def _directory(folder: pathlib.Path) -> None:
  directories.write(folder, SIZE, VOCAB.size, shard_bytes=20_000, mask_token=VOCAB.mask,
                    audio_token_id_start=VOCAB.audio_threshold, ttt_vocabulary=VOCAB.to_dict(),
                    rope_scaling=None, max_position_embeddings=64, layer_types=None)


def _single(folder: pathlib.Path) -> None:
  directories.write(folder, SIZE, VOCAB.size, mask_token=VOCAB.mask,
                    audio_token_id_start=VOCAB.audio_threshold)


def _adapter(folder: pathlib.Path) -> None:
  model = Model(ADAPTED, VOCAB.size)
  peft.save(folder, model, lora.adapters(model.init(jax.random.key(0))), 'base')


def _open_adapter(folder: pathlib.Path) -> None:
  peft.load(folder, Model(ADAPTED, VOCAB.size), one_device(), {})


def one_device() -> jax.sharding.Mesh:
  """A mesh of the first device."""
  return sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])


def _tokenizer(folder: pathlib.Path) -> None:
  letters = {letter: b for b, letter in enumerate(bpe_ranks.byte_letters())}
  definition = bpe_ranks.definition({**letters, 'ab': 256}, [['a', 'b']])
  definition['added_tokens'] = [{'id': 257, 'content': '<|endoftext|>', 'special': True}]
  _json(folder / 'tokenizer.json', definition)


def _glm4(folder: pathlib.Path) -> None:
  _json(folder / 'config.json', {
      'num_mel_bins': 128, 'd_model': 64, 'encoder_attention_heads': 4, 'encoder_ffn_dim': 64,
      'quantize_position': 2, 'max_source_positions': 64, 'quantize_causal_block_size': 8,
      'quantize_vocab_size': 16, 'pooling_kernel_size': 4, 'activation_function': 'gelu'})
  tensors = {place.name: np.ones(place.shape, np.float32)
             for place in glm4.places(glm4.shape_of(folder / 'config.json'))}
  safetensors_io.Writer(folder, [safetensors_io.Plan(name, value.shape, value.dtype)
                                 for name, value in tensors.items()], 2**40).write(tensors.get)


SCENES = {
    'config': Scene(_workdir, {'config.json': 'json'}, lambda folder: (
        config_lib.load(folder / 'config.json'), status.status(folder))),
    'status': Scene(_workdir, {'status.json': 'json'}, lambda folder: (
        supervisor.newest_checkpoint(folder), status.status(folder, lambda: NOW))),
    'metrics': Scene(_workdir, {'metrics.jsonl': 'lines'}, lambda folder: (
        metrics.read(folder), status.status(folder, lambda: NOW),
        sweep_table.summary(metrics.read(folder)))),
    'evaluation': Scene(_workdir, {'evaluation.json': 'json'}, lambda folder: (
        sweep_table.scores(folder), (folder / 'metrics.jsonl').unlink(), page.report(folder))),
    'sweep': Scene(_sweep, {'sweep.json': 'json', 'm0/member.json': 'json'}, lambda folder: (
        status.status(folder, lambda: NOW), sweep_table.write_table(folder))),
    'manifest': Scene(_set, {'manifest.json': 'json'}, _open_set),
    'rows': Scene(_set, {'train.arrayrecord': 'text'}, _open_set),
    'codec': Scene(_codec, {'codec.json': 'json', 'codec.npz': 'npz'}, _open_codec),
    'checkpoint': Scene(_checkpoint, {
        'checkpoints': 'folder', 'checkpoints/8/seal.json': 'signed',
        'checkpoints/8/sums.0.json': 'signed'}, _open_checkpoint),
    'hf_config': Scene(_single, {'config.json': 'json'}, import_hf.read),
    'safetensors': Scene(_single, {'model.safetensors': 'safetensors'}, import_hf.read),
    'index': Scene(_directory, {safetensors_io.INDEX: 'json'}, import_hf.read),
    'adapter': Scene(_adapter, {peft.CONFIG: 'json', peft.WEIGHTS: 'safetensors'}, _open_adapter),
    'tokenizer': Scene(_tokenizer, {'tokenizer.json': 'json'},
                       lambda folder: hf_tokenizer.read(folder).encode('about')),
    'glm4': Scene(_glm4, {'config.json': 'json'}, glm4.Checkpoint),
}
