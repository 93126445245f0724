"""Small ONNX models in the forms of published ones, made on the spot."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(path, nodes, inputs, outputs, constants, metadata):
  """Writes a model. inputs, outputs: {name: (type, shape)}; constants: {name: array}."""
  def info(named):
    return [helper.make_tensor_value_info(name, *one) for name, one in named.items()]
  graph = helper.make_graph(nodes, 'test', info(inputs), info(outputs),
                            [numpy_helper.from_array(value, name)
                             for name, value in constants.items()])
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=8)
  helper.set_model_props(model, {key: str(value) for key, value in metadata.items()
                                 if value != ''})
  onnx.save(model, str(path))


def tones(folder, quiet=-8.0):
  """A zipformer CTC model that hears LOW where the lower mel bands are loudest, and HIGH."""
  folder.mkdir(parents=True, exist_ok=True)
  weight = np.zeros((80, 3), np.float32)
  weight[:30, 1], weight[50:, 2] = 1 / 30, 1 / 30
  nodes = [helper.make_node('Slice', ['x', 'start', 'end', 'axis', 'step'], ['fourth']),
           helper.make_node('MatMul', ['fourth', 'weight'], ['product']),
           helper.make_node('Add', ['product', 'bias'], ['scores']),
           helper.make_node('LogSoftmax', ['scores'], ['log_probs'], axis=2),
           helper.make_node('Add', ['x_lens', 'three'], ['more']),
           helper.make_node('Div', ['more', 'four'], ['log_probs_len'])]
  one = lambda value: np.array([value], np.int64)
  save(folder / 'model.onnx', nodes,
       {'x': (TensorProto.FLOAT, ['N', 'T', 80]), 'x_lens': (TensorProto.INT64, ['N'])},
       {'log_probs': (TensorProto.FLOAT, ['N', 'S', 3]),
        'log_probs_len': (TensorProto.INT64, ['N'])},
       {'weight': weight, 'bias': np.array([quiet, 0, 0], np.float32), 'start': one(0),
        'end': one(2**31), 'axis': one(1), 'step': one(4), 'three': one(3), 'four': one(4)},
       {'model_type': 'zipformer2_ctc'})
  (folder / 'tokens.txt').write_text('<blk> 0\n\u2581LOW 1\n\u2581HIGH 2\n', encoding='utf-8')
  return folder


def sense_voice(folder, quiet=-8.0):
  """As ``tones``, in the form of SenseVoice: seven frames at once, four tags before the text."""
  folder.mkdir(parents=True, exist_ok=True)
  weight = np.zeros((7, 80, 8), np.float32)
  weight[:, :30, 1], weight[:, 50:, 2] = 1 / 210, 1 / 210
  tags = np.zeros((1, 4, 8), np.float32)
  tags[0, np.arange(4), 4 + np.arange(4)] = 100
  one = lambda value: np.array([value], np.int64)
  nodes = [helper.make_node('MatMul', ['x', 'weight'], ['product']),
           helper.make_node('Add', ['product', 'bias'], ['scores']),
           helper.make_node('Shape', ['x'], ['shape']),
           helper.make_node('Slice', ['shape', 'start', 'end'], ['count']),
           helper.make_node('Concat', ['count', 'unit', 'unit'], ['repeats'], axis=0),
           helper.make_node('Tile', ['tags', 'repeats'], ['head']),
           helper.make_node('Concat', ['head', 'scores'], ['logits'], axis=1)]
  whole = TensorProto.INT32
  save(folder / 'model.onnx', nodes,
       {'x': (TensorProto.FLOAT, ['N', 'T', 560]), 'x_length': (whole, ['N']),
        'language': (whole, ['N']), 'text_norm': (whole, ['N'])},
       {'logits': (TensorProto.FLOAT, ['N', 'S', 8])},
       {'weight': weight.reshape(560, 8), 'tags': tags, 'start': one(0), 'end': one(1),
        'unit': one(1), 'bias': np.array([quiet, 0, 0, -50, -50, -50, -50, -50], np.float32)},
       {'vocab_size': 8, 'lfr_window_size': 7, 'lfr_window_shift': 6, 'normalize_samples': 1,
        'with_itn': 14, 'without_itn': 15, 'neg_mean': ','.join(['0'] * 560),
        'inv_stddev': ','.join(['1'] * 560), 'comment': 'test',
        **{f'lang_{code}': number for number, code in enumerate(
            ('auto', 'zh', 'en', 'ja', 'ko', 'yue'))}})
  names = ('<blk>', '\u2581LOW', '\u2581HIGH', '<unk>', '<|en|>', '<|NEUTRAL|>', '<|Speech|>',
           '<|woitn|>')
  (folder / 'tokens.txt').write_text(
      ''.join(f'{name} {number}\n' for number, name in enumerate(names)), encoding='utf-8')
  return folder


def spectrum(path):
  """A speaker model of waveforms [N, T]: its embedding has 8 band energies of the first second."""
  rate, bands = 16_000, 8
  hertz = 200 * 1.6 ** np.arange(bands)
  time = np.arange(rate // 4) / rate
  basis = np.concatenate([np.cos(2 * np.pi * hertz[:, None] * time),
                          np.sin(2 * np.pi * hertz[:, None] * time)]).T.astype(np.float32)
  fold = np.concatenate([np.eye(bands), np.eye(bands)]).astype(np.float32)
  one = lambda value: np.array([value], np.int64)
  nodes = [helper.make_node('Slice', ['wave', 'start', 'end', 'axis'], ['part']),
           helper.make_node('MatMul', ['part', 'basis'], ['found']),
           helper.make_node('Mul', ['found', 'found'], ['power']),
           helper.make_node('MatMul', ['power', 'fold'], ['embedding'])]
  save(path, nodes, {'wave': (TensorProto.FLOAT, ['N', 'T'])},
       {'embedding': (TensorProto.FLOAT, ['N', bands])},
       {'basis': basis, 'fold': fold, 'start': one(0), 'end': one(rate // 4), 'axis': one(1)}, {})
  return path


def voices(path, **metadata):
  """A speaker model in the form of WeSpeaker: its embedding is the mean of 80 mel features."""
  nodes = [helper.make_node('ReduceMean', ['feats'], ['embs'], axes=[1], keepdims=0)]
  save(path, nodes, {'feats': (TensorProto.FLOAT, ['N', 'T', 80])},
       {'embs': (TensorProto.FLOAT, ['N', 80])}, {},
       {'framework': 'wespeaker', 'language': 'English', 'output_dim': 80, 'sample_rate': 16_000,
        'normalize_samples': 1} | metadata)
  return path
