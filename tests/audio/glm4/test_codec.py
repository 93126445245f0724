"""GLM-4-Voice as a codec: reading and rejecting weights, encoding files, the PyTorch decoder."""

import json
import sys

import ml_dtypes
import numpy as np
import pytest
from jax import tree_util

from tests.audio.glm4 import folders
from tests.audio.signals import babble
from tests.reference import glm4 as reference
from ttt_jax.audio import codec as codecs, io
from ttt_jax.audio.glm4 import features
from ttt_jax.audio.glm4.checkpoint import Checkpoint, places
from ttt_jax.config import CodecConfig
from ttt_jax.errors import UserError
from ttt_jax.storage import remote

SMALL = reference.SMALL


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return folders.small(tmp_path_factory.mktemp('glm4'))[0]


@pytest.fixture(scope='module')
def codec(folder):
  return codecs.create(CodecConfig('glm4_voice', weights=str(folder)))


def test_without_weights_the_codec_knows_its_codes_and_says_what_is_missing(tmp_path):
  codec = codecs.create(CodecConfig('glm4_voice'))
  assert (codec.name, codec.codebook_size, codec.tokens_per_second) == ('glm-4-voice', 16_384, 12.5)
  codec.save(tmp_path)
  again = codecs.load(tmp_path)
  assert again.name == codec.name and again.settings() == codec.settings()
  with pytest.raises(UserError, match='cannot encode .* codec.weights'):
    again.encode(babble(0.2), 22_050)
  with pytest.raises(UserError, match='cannot make sound: its decoder is PyTorch'):
    again.decode([1, 2])
  with pytest.raises(UserError, match='code 16384 is outside'):
    again.decode([16_384])


def test_a_recording_longer_than_a_segment_is_one_stream_of_its_segments(codec):
  wave = babble(3.0, 16_000, seed=2)  # segments of 16 tokens here
  whole = codec.encode(wave, 16_000)
  assert whole.dtype == np.int32 and len(whole) == -(-len(wave) // 1280)
  pieces = [codec.encode(wave[i:i + 20_480], 16_000) for i in range(0, len(wave), 20_480)]
  np.testing.assert_array_equal(whole, np.concatenate(pieces))
  assert len(np.unique(whole)) > 5


def test_many_recordings_give_what_each_gives_and_bad_ones_their_reason(codec):
  good = [(babble(0.8, 22_050, seed=1), 22_050), (babble(1.9, 16_000, seed=2), 16_000)]
  bad = [(np.zeros(0, np.float32), 16_000), (np.full(900, np.nan, np.float32), 16_000),
         (np.zeros(900, np.float32), 16_000), (good[0][0], 3)]
  found = list(codec.encode_many([good[0], *bad, good[1]]))
  np.testing.assert_array_equal(found[0], codec.encode(*good[0]))
  np.testing.assert_array_equal(found[-1], codec.encode(*good[1]))
  assert [str(error).split(' has ')[0].split(':')[0] for error in found[1:5]] == [
      'a recording is empty', 'a recording', 'a recording is silent', 'a recording']
  assert all(isinstance(error, UserError) for error in found[1:5])
  with pytest.raises(UserError, match='is empty'):
    codec.encode(*bad[0])


def test_large_batches_give_the_same_codes(codec, monkeypatch):
  recordings = [(babble(0.5 + 0.02 * i + (i == 4), 16_000, seed=i), 16_000) for i in range(5)]
  recordings.insert(2, (np.zeros(100, np.float32), 16_000))
  want = list(codec.encode_many(recordings))
  monkeypatch.setattr(codec.batches(), '_rows', 2)
  found = list(codec.encode_many(iter(recordings)))
  assert len(found) == 6 and isinstance(found[2], UserError)
  for i in (0, 1, 3, 4, 5):
    np.testing.assert_array_equal(found[i], want[i])


def test_save_and_load_and_weights_that_were_swapped(codec, folder, tmp_path):
  codec.save(tmp_path / 'saved')
  again = codecs.load(tmp_path / 'saved')
  assert again.name == codec.name == f'glm-4-voice-{SMALL["quantize_vocab_size"]}'
  wave = babble(0.6, 16_000)
  np.testing.assert_array_equal(again.encode(wave, 16_000), codec.encode(wave, 16_000))
  values = reference.random_tensors(SMALL, seed=9)
  other = folders.write(tmp_path / 'other', SMALL, values)
  path = tmp_path / 'saved' / 'codec.json'
  path.write_text(path.read_text().replace(str(folder), str(other)))
  with pytest.raises(UserError, match='have another codebook than the codes'):
    codecs.load(tmp_path / 'saved').encode(wave, 16_000)


# -- weights ------------------------------------------------------------------------


@pytest.mark.parametrize('layout', [
    {'prefix': 'model.encoder.'}, {'prefix': 'model.encoder.', 'shard_bytes': 20_000}])
def test_both_published_layouts_in_one_file_or_many(folder, tmp_path, layout):
  other, _ = folders.small(tmp_path, **layout)
  assert (tmp_path / 'model.safetensors').exists() == ('shard_bytes' not in layout)
  first, second = (tree_util.tree_flatten_with_path(Checkpoint(one).read())[0]
                   for one in (folder, other))
  assert len(first) == len(second) == 2 + 4 + 1 + 15
  for (path, array), (again, same) in zip(first, second):
    assert path == again and array.dtype == np.float32
    np.testing.assert_array_equal(array, same)


def test_half_precision_weights_are_read_as_float32(tmp_path):
  values = {name: array.astype(ml_dtypes.bfloat16)
            for name, array in reference.random_tensors(SMALL).items()}
  checkpoint = Checkpoint(folders.write(tmp_path, SMALL, values))
  codes = checkpoint.read()['codebook']['codes']
  assert codes.dtype == np.float32
  np.testing.assert_array_equal(codes, values['codebook.weight'].astype(np.float32))


def test_every_tensor_is_needed_and_has_one_shape(tmp_path):
  values = reference.random_tensors(SMALL)
  needed = [place.name for place in places(Checkpoint(
      folders.write(tmp_path / 'whole', SMALL, values)).shape)]
  assert len(needed) == len(set(needed)) == 2 + 4 + 3 * 15
  for name in needed[::7]:
    rest = {key: array for key, array in values.items() if key != name}
    lacking = folders.write(tmp_path / 'lacking', SMALL, rest, 'model.encoder.')
    with pytest.raises(UserError, match=f'(lacks|has no) tensor .*{name}'):
      Checkpoint(lacking)
    other = folders.write(tmp_path / 'other', SMALL, {**rest, name: values[name][..., :-1]})
    with pytest.raises(UserError, match=f'tensor {name} in .* has shape'):
      Checkpoint(other)


@pytest.mark.parametrize('changes, said', [
    ({'encoder_causal_convolution': False}, 'encoder_causal_convolution = False; only True is'),
    ({'quantize_causal_encoder': True}, 'quantize_causal_encoder = True'),
    ({'pooling_kernel_size': 2}, 'pooling_kernel_size = 2'),
    ({'d_model': '32'}, "d_model = '32'; it must be an integer from 1"),
    ({'quantize_position': 0}, 'quantize_position = 0'),
    ({'encoder_attention_heads': 5}, 'd_model 32 for 5 heads'),
    ({'d_model': 36}, 'has shape')])
def test_settings_of_another_network_are_rejected(tmp_path, changes, said):
  folder = folders.write(tmp_path, {**SMALL, **changes}, reference.random_tensors(SMALL))
  with pytest.raises(UserError, match=said):
    codecs.create(CodecConfig('glm4_voice', weights=str(folder)))


def test_folders_that_are_none_and_files_that_are_damaged(tmp_path):
  create = lambda path: codecs.create(CodecConfig('glm4_voice', weights=str(path)))
  with pytest.raises(UserError, match=r"codec\.weights is '.*nowhere', which is not a folder"):
    create(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='neither model.safetensors nor'):
    create(tmp_path)
  folder, values = folders.small(tmp_path / 'glm4')
  (folder / 'config.json').write_text('[1]')
  with pytest.raises(UserError, match='must be a JSON object'):
    create(folder)
  values['layers.1.fc1.bias'][3] = np.inf
  folders.write(folder, SMALL, values)
  codec = create(folder)  # headers are fine
  with pytest.raises(UserError, match=r'layers\.1\.fc1\.bias .* not finite'):
    codec.encode(babble(0.2), 22_050)
  whole = (folder / 'model.safetensors').read_bytes()
  (folder / 'model.safetensors').write_bytes(whole[:-100])
  with pytest.raises(UserError, match='not a complete safetensors file'):
    create(folder)


# -- prepare ------------------------------------------------------------------------


def test_prepare_encodes_recordings_with_the_weights_of_the_config(folder, codec, tmp_path):
  from ttt_jax.config import Config, DataConfig, Source
  from ttt_jax.data.heldout import load_records
  from ttt_jax.data.prepare.prepare import prepare
  lines = []
  for i in range(3):
    io.write_wav(tmp_path / f'{i}.wav', babble(1.5, 22_050, seed=i), 22_050)
    lines.append(json.dumps({'id': str(i), 'audio': f'{i}.wav', 'text': 'one two'}))
  (tmp_path / 'speech.jsonl').write_text('\n'.join(lines))
  config = Config(
      codec=CodecConfig('glm4_voice', weights=str(folder)),
      data=DataConfig(sources=(Source('speech.jsonl', 'tts', split='heldout'),), seq_len=256))
  manifest = prepare(config, tmp_path)
  assert manifest['vocabulary']['codec'] == codec.name
  for record in load_records(tmp_path / 'data'):
    part = next(part for turn in record.turns for part in turn.parts if part.kind == 'audio')
    file = tmp_path / 'data' / part.source
    np.testing.assert_array_equal(part.codes, codec.encode(*io.read(file)))
  assert codecs.load(tmp_path / 'data' / 'codec').settings() == codec.settings()


# -- the bridge ---------------------------------------------------------------------


DECODER = '''
import torch


class AudioDecoder:
  """Has the interface of the published class; a code is 80 ms of its own level."""

  def __init__(self, config_path, flow_ckpt_path, hift_ckpt_path, device='cuda'):
    for path in (config_path, flow_ckpt_path, hift_ckpt_path):
      open(path).close()
    assert device in ('cpu', 'cuda')

  def offline_inference(self, token):
    assert token.dtype == torch.int64 and token.shape[0] == 1
    return torch.repeat_interleave(token.float() / 8192, 1764, dim=1)
'''


@pytest.fixture
def decoder(tmp_path, monkeypatch):
  """Settings that name a decoder like the published one."""
  (tmp_path / 'code').mkdir()
  (tmp_path / 'code' / 'glm4_test_flow_inference.py').write_text(DECODER)
  monkeypatch.syspath_prepend(tmp_path / 'code')
  (tmp_path / 'weights').mkdir()
  for name in ('config.yaml', 'flow.pt', 'hift.pt'):
    (tmp_path / 'weights' / name).write_text('')
  yield {'decoder': 'glm4_test_flow_inference:AudioDecoder',
         'decoder_weights': str(tmp_path / 'weights')}
  sys.modules.pop('glm4_test_flow_inference', None)


def test_the_bridge_hands_codes_to_the_published_class(decoder, tmp_path):
  pytest.importorskip('torch')
  codec = codecs.create(CodecConfig('glm4_voice', **decoder))
  assert 'glm4_test_flow_inference' not in sys.modules  # only when there is something to decode
  codec.save(tmp_path / 'saved')
  sound = codecs.load(tmp_path / 'saved').decode([0, 4096, 16_383])
  assert sound.dtype == np.float32 and sound.shape == (3 * 1764,)
  np.testing.assert_array_equal(sound[::1764], [0, 0.5, 1])
  assert codec.decode([]).shape == (0,)


def test_a_bridge_that_leads_nowhere_says_so(decoder, tmp_path):
  create = lambda **changes: codecs.create(CodecConfig('glm4_voice', **{**decoder, **changes}))
  with pytest.raises(UserError, match='codec.decoder is \'flow\'; use "module:Class"'):
    create(decoder='flow')
  (tmp_path / 'weights' / 'flow.pt').unlink()
  with pytest.raises(UserError, match='a folder without flow.pt'):
    create()
  with pytest.raises(UserError, match="decoder_weights is ''"):
    create(decoder_weights='')
  (tmp_path / 'weights' / 'flow.pt').write_text('')
  for name in ('nowhere_at_all:AudioDecoder', 'glm4_test_flow_inference:Missing'):
    with pytest.raises(UserError, match='cannot be imported'):
      create(decoder=name).decode([1])


@pytest.mark.storage
def test_weights_in_a_bucket(gs_bucket, folder, decoder, tmp_path):
  remote.upload_folder(folder, f'{gs_bucket}/tokenizer')
  remote.upload_folder(tmp_path / 'weights', f'{gs_bucket}/decoder')
  config = CodecConfig('glm4_voice', weights=f'{gs_bucket}/tokenizer',
                       decoder=decoder['decoder'], decoder_weights=f'{gs_bucket}/decoder')
  found, here = codecs.create(config), CodecConfig('glm4_voice', weights=str(folder))
  assert found.settings()['weights'] == config.weights  # which holds on other machines
  assert found.settings()['digest'] == codecs.create(here).settings()['digest']
  assert codecs.planned_codebook_size(config) == codecs.planned_codebook_size(here)
  remote.remove(f'{gs_bucket}/decoder/flow.pt')
  with pytest.raises(UserError, match=f"'{gs_bucket}/decoder', a folder without flow.pt"):
    codecs.create(config)
  remote.remove_folder(f'{gs_bucket}/tokenizer')
  with pytest.raises(UserError, match=f'codec.weights: {gs_bucket}/tokenizer does not exist'):
    codecs.create(config)


def test_tokens_come_at_their_published_rate():
  assert features.RATE / features.PATCH == 12.5 and features.FRAMES == 8
