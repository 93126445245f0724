"""The hybrid loss in PyTorch over transformers' own Qwen2, written from the method's text.

Nothing of ttt_jax takes part: a packed row is one dense mask filled in pair by pair, the
noise is a table of which tokens became masks, and autograd gives the gradients.
"""

import torch

from tests.reference import objective, staircase


def model(config, state, vocab_size):
  """A Qwen2ForCausalLM of a ModelConfig's size, float32, with ``state`` under Qwen2's names."""
  from transformers import Qwen2Config, Qwen2ForCausalLM
  size = Qwen2Config(vocab_size=vocab_size,
                     hidden_size=config.hidden_size,
                     intermediate_size=config.intermediate_size,
                     num_hidden_layers=config.num_layers,
                     num_attention_heads=config.num_attention_heads,
                     num_key_value_heads=config.num_key_value_heads,
                     head_dim=config.head_dim,
                     max_position_embeddings=2048,
                     rope_theta=config.rope_theta,
                     rms_norm_eps=config.rms_norm_eps,
                     attention_dropout=0.0,
                     tie_word_embeddings=config.tie_word_embeddings,
                     use_cache=False,
                     attn_implementation='eager')
  out = Qwen2ForCausalLM(size)
  missing = out.load_state_dict({name: torch.tensor(x) for name, x in state.items()}, strict=False)
  assert not missing.unexpected_keys
  assert set(missing.missing_keys) <= ({'lm_head.weight'} if config.tie_word_embeddings else set())
  return out


def log_p(net, rows, seq_len, noisy, vocab, mode, prompt_audio):
  """log p(. | position), [rows, T, V], of packed rows.

  Args:
    net: a Qwen2ForCausalLM.
    rows: per row, a list of (number, ids, supervised) documents.
    seq_len: T.
    noisy: the same nesting: the ids that the model reads.
    vocab, mode, prompt_audio: as in tests.reference.staircase.
  """
  token = torch.full((len(rows), seq_len), vocab.pad)
  position = torch.zeros_like(token)
  masks = []
  for r, row in enumerate(rows):
    at = 0
    for ids in noisy[r]:
      token[r, at:at + len(ids)] = torch.tensor(ids)
      position[r, at:at + len(ids)] = torch.arange(len(ids))
      at += len(ids)
    allowed = torch.tensor(staircase.row_matrix(vocab, row, seq_len, mode, prompt_audio))
    masks.append(allowed | torch.eye(seq_len, dtype=torch.bool))  # padding reads itself
  bias = torch.where(torch.stack(masks), 0.0, torch.finfo(torch.float32).min)[:, None]
  logits = net(input_ids=token, position_ids=position, attention_mask=bias).logits
  return torch.log_softmax(logits.double(), dim=-1)


def terms(net, rows, seq_len, noises, vocab, mode='hybrid', prompt_audio='bidirectional'):
  """(AR, diffusion): float64 scalars with gradients, means over all documents.

  Args:
    rows: as above; noises: per document, in order, an objective.Noise.
    net, seq_len, vocab, mode, prompt_audio: as above.
  """
  given = iter(noises)
  of = [[next(given) for _ in row] for row in rows]
  noisy = [[objective.noisy_ids(vocab, ids, noise) for (_, ids, _), noise in zip(row, drawn)]
           for row, drawn in zip(rows, of)]
  found = log_p(net, rows, seq_len, noisy, vocab, mode, prompt_audio)
  text, audio, count = torch.zeros((), dtype=torch.float64), 0.0, 0
  for r, (row, drawn) in enumerate(zip(rows, of)):
    at = 0
    for (_, ids, supervised), noise in zip(row, drawn):
      nll = lambda i, token: -found[r, at + i, token]  # noqa: B023 (used at once)
      targets = [i for i in range(len(ids) - 1) if supervised[i + 1] and (
          mode == 'ar' or mode == 'hybrid' and ids[i + 1] < vocab.audio_threshold)]
      for i in targets:
        text = text + nll(i, ids[i + 1]) / len(targets)
      may = [] if mode == 'ar' or noise.banom else [
          i for i in range(noise.start, len(ids))
          if supervised[i] and (mode == 'nar' or ids[i] >= vocab.audio_threshold)]
      for i in may:
        if noise.masked[i]:
          audio = audio + nll(i, ids[i]) / (noise.p * len(may))
      at += len(ids)
      count += 1
  return text / count, audio / count
