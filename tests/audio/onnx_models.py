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
  helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
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
