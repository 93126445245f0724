"""The published way of a train step, in PyTorch: the side that benchmarks compare with.

  python -m benchmarks.torch_baseline FOLDER THREADS MICROBATCH ATTENTION

Hugging Face's Qwen2 with a dense additive mask [samples, 1, T, T], every document padded
to T, logits for every position over the complete vocabulary, float32, AdamW (fused), gradients
accumulated over microbatches. The objective is that of the method's text: an AR term and a
diffusion term with weights 1 / p, means per document, and the noise is given (see
benchmarks/our_side.py for the files in FOLDER).
"""

import json
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from benchmarks import common
from ttt_jax.tokens.batch import run_ids
from ttt_jax.tokens.vocab import Vocabulary


class Samples(NamedTuple):
  """Documents one per row, padded on the right; [N, T] each."""
  clean: np.ndarray      # int64 ids
  noisy: np.ndarray      # int64 ids, some of them the mask
  real: np.ndarray       # bool: not padding
  supervised: np.ndarray # bool
  span: np.ndarray       # int32: audio spans of the document from 1, 0 = text
  masked: np.ndarray     # bool
  maskable: np.ndarray   # float32: their number in the document, at every token
  rate: np.ndarray       # float32: p of the document


def samples(folder: pathlib.Path, step: int, vocab: Vocabulary) -> Samples:
  """The packed rows of a step, taken apart again and padded to T."""
  with np.load(folder / f'step_{step}.npz') as file:
    rows = {name: file[name] for name in file}
  length = rows['token'].shape[1]
  out: list[dict[str, np.ndarray]] = []
  for r, ids in enumerate(rows['document']):
    for number in dict.fromkeys(ids[ids > 0].tolist()):
      here = ids == number
      pad = lambda name, fill: np.pad(rows[name][r][here], (0, length - here.sum()),
                                      constant_values=fill)
      clean, real = pad('token', vocab.pad), np.arange(length) < here.sum()
      out.append({
          'clean': clean.astype(np.int64), 'noisy': pad('noisy', vocab.pad).astype(np.int64),
          'real': real, 'supervised': pad('supervised', 0) > 0,
          'span': run_ids(vocab.is_audio(clean) & real, real.astype(np.int32)),
          'masked': pad('masked', False), 'rate': np.full(length, rows['rate'][r][here][0]),
          'maskable': np.full(length, rows['maskable'][r][here].sum(), np.float32)})
  return Samples(*(np.stack([one[name] for one in out]) for name in Samples._fields))


def dense_mask(span: Any, real: Any) -> Any:
  """float32 [N, 1, T, T], 0 where a query may read a key and the lowest number elsewhere.

  Args:
    span: int [N, T] tensor; equal numbers above 0 read each other.
    real: bool [N, T] tensor; padding reads itself alone, so that no row is empty.
  """
  import torch
  length = span.shape[1]
  causal = torch.ones(length, length, dtype=torch.bool).tril()
  same = (span[:, :, None] == span[:, None, :]) & (span[:, :, None] > 0)
  allowed = (causal | same) & real[:, None, :] & real[:, :, None]
  allowed |= torch.eye(length, dtype=torch.bool)
  return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]


def state_dict(flat: dict[str, np.ndarray], vocab_size: int) -> dict[str, Any]:
  """Our parameters, by dotted name with stacked layers, under Hugging Face's names."""
  import torch
  names = {'attention.q': 'self_attn.q_proj', 'attention.k': 'self_attn.k_proj',
           'attention.v': 'self_attn.v_proj', 'attention.o': 'self_attn.o_proj',
           'mlp.gate': 'mlp.gate_proj', 'mlp.up': 'mlp.up_proj', 'mlp.down': 'mlp.down_proj',
           'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
  embedding = torch.tensor(flat['trunk.embedding'][:vocab_size])
  head = torch.tensor(flat['trunk.head'][:vocab_size]) if 'trunk.head' in flat else embedding
  out = {'model.embed_tokens.weight': embedding, 'lm_head.weight': head,
         'model.norm.weight': torch.tensor(flat['trunk.norm.scale'])}
  for name, stacked in flat.items():
    if not name.startswith('layers.'):
      continue
    module, kind = name.removeprefix('layers.').rsplit('.', 1)
    for i, array in enumerate(stacked):
      value = array.T if kind == 'kernel' else array
      leaf = 'bias' if kind == 'bias' else 'weight'
      out[f'model.layers.{i}.{names[module]}.{leaf}'] = torch.tensor(value)
  return out


def build(config: dict[str, Any], vocab_size: int, seq_len: int, weights: pathlib.Path,
          attention: str) -> Any:
  """A Qwen2ForCausalLM of our size with our weights."""
  from transformers import Qwen2Config, Qwen2ForCausalLM
  size = Qwen2Config(vocab_size=vocab_size,
                     hidden_size=config['hidden_size'],
                     intermediate_size=config['intermediate_size'],
                     num_hidden_layers=config['num_layers'],
                     num_attention_heads=config['num_attention_heads'],
                     num_key_value_heads=config['num_key_value_heads'],
                     head_dim=config['head_dim'],
                     max_position_embeddings=seq_len,
                     rope_theta=config['rope_theta'],
                     rms_norm_eps=config['rms_norm_eps'],
                     tie_word_embeddings=config['tie_word_embeddings'],
                     attention_dropout=0.0,
                     use_cache=False,
                     attn_implementation=attention)
  model = Qwen2ForCausalLM(size)
  with np.load(weights) as flat:
    model.load_state_dict(state_dict(dict(flat), vocab_size))
  return model.train()


def sample_losses(logits: Any, part: dict[str, Any], vocab: Vocabulary) -> Any:
  """AR + diffusion of each document, [N]; logits [N, T, V], ``part`` as Samples of tensors."""
  import torch
  from torch.nn import functional
  clean, masked = part['clean'], part['masked']
  text = part['supervised'][:, 1:] & part['real'][:, 1:] & ~vocab.is_audio(clean[:, 1:])
  owner = lambda where: where.nonzero()[:, 0]
  total = torch.zeros(len(clean))
  if text.any():
    nll = functional.cross_entropy(logits[:, :-1][text], clean[:, 1:][text], reduction='none')
    total = total.index_add(0, owner(text), nll / text.sum(1)[owner(text)])
  if masked.any():
    nll = functional.cross_entropy(logits[masked], clean[masked], reduction='none')
    total = total.index_add(0, owner(masked), nll / (part['rate'] * part['maskable'])[masked])
  return total


class Published:
  """Model, optimizer and the answers about them."""

  def __init__(self, folder: pathlib.Path, microbatch: int, attention: str):
    import torch
    case = json.loads((folder / 'case.json').read_text(encoding='utf-8'))
    self.folder, self.microbatch = folder, microbatch
    self.vocab = Vocabulary(**case['vocabulary'])
    self.settings = case['config']['optimizer']
    self.rates = json.loads((folder / 'rates.json').read_text(encoding='utf-8'))
    self.model = build(case['config']['model'], self.vocab.size,
                       case['config']['data']['seq_len'], folder / 'weights.npz', attention)
    weights = list(self.model.parameters())
    groups = [{'params': [w for w in weights if w.ndim >= 2]},
              {'params': [w for w in weights if w.ndim < 2], 'weight_decay': 0.0}]
    self.optimizer = torch.optim.AdamW(
        groups, betas=(self.settings['beta1'], self.settings['beta2']), eps=self.settings['eps'],
        weight_decay=self.settings['weight_decay'], fused=True)

  def step(self, step: int) -> dict[str, float]:
    """One update on the documents of step ``step``."""
    batch = samples(self.folder, step, self.vocab)
    (loss, norm), times = common.timed(lambda: self._update(batch, self.rates[step]))
    return {**times, 'loss': loss, 'grad_norm': norm, 'samples': len(batch.clean)}

  def _update(self, batch: Samples, rate: float) -> tuple[float, float]:
    import torch
    documents, total = len(batch.clean), 0.0
    for start in range(0, documents, self.microbatch):
      part = {name: torch.from_numpy(array[start:start + self.microbatch])
              for name, array in batch._asdict().items()}
      logits = self.model(input_ids=part['noisy'],
                          attention_mask=dense_mask(part['span'], part['real'])).logits
      loss = sample_losses(logits, part, self.vocab).sum() / documents
      loss.backward()
      total += float(loss.detach())
    limit = self.settings['max_grad_norm'] or float('inf')
    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
    for group in self.optimizer.param_groups:
      group['lr'] = rate
    self.optimizer.step()
    self.optimizer.zero_grad()
    return total, float(norm)


def main(words: list[str]) -> None:
  folder, threads, microbatch, attention = words
  common.stay_on(int(threads))
  import torch
  import transformers
  transformers.utils.logging.set_verbosity_error()
  from transformers import Qwen2ForCausalLM  # noqa: F401
  torch.set_num_threads(int(threads))
  imported = common.peak_bytes()
  published = Published(pathlib.Path(folder), int(microbatch), attention)
  common.serve({
      'about': lambda: {'versions': f'torch {torch.__version__}, '
                        f'transformers {transformers.__version__}', 'imported_bytes': imported},
      'step': published.step,
  })


if __name__ == '__main__':
  main(sys.argv[1:])
