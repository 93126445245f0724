"""Against transformers: its Qwen2 directories in, ours out, the same logits."""

import numpy as np
import pytest

from tests.hf import directories
from tests.reference import batches, staircase as slow
from ttt_jax.config import ModelConfig
from ttt_jax.hf import import_hf, tensor_names
from ttt_jax.model import staircase
from ttt_jax.model.transformer import Model
from ttt_jax.storage import safetensors_io

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
V = batches.VOCAB


@pytest.mark.parametrize('tied, heads, kv_heads, head_dim, layers, theta, shard', [
    (True, 4, 1, 8, 2, 1e6, '1GB'),
    (False, 4, 2, 8, 1, 1e4, '20KB'),
    (True, 4, 4, 16, 3, 1e6, '30KB'),
    (False, 6, 3, 4, 2, 1e6, '1GB'),
])
def test_saved_by_transformers(tmp_path, tied, heads, kv_heads, head_dim, layers, theta, shard):
  """Random weights import to the same logits, causal and hybrid."""
  torch.manual_seed(heads + layers)
  model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
      vocab_size=V.size, hidden_size=heads * head_dim, intermediate_size=40,
      num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
      tie_word_embeddings=tied, rope_theta=theta, attn_implementation='eager',
      audio_token_id_start=V.audio_threshold, mask_token=V.mask))
  for parameter in model.parameters():  # biases and norms, too
    parameter.data.add_(0.2 * torch.randn_like(parameter))
  model.eval().save_pretrained(tmp_path, max_shard_size=shard)
  config, vocab, params = import_hf.read(tmp_path)
  assert (config.num_layers, config.num_key_value_heads, config.rope_theta) == (layers, kv_heads,
                                                                                theta)
  ours = Model(config, vocab.size)
  plan, batch = batches.packed(np.random.default_rng(1), rows=3, seq_len=64)
  causal = np.arange(64)[None] + np.zeros((3, 1), int)
  for mask in ('causal', 'hybrid'):
    start, end = (np.zeros_like(causal), 1 + causal) if mask == 'causal' else (
        staircase.key_ranges(batch))
    got = ours.logits(params, ours.hidden(params, batch.token, batch.position, start, end))
    for row in range(3):
      allowed = np.tril(np.ones((64, 64), bool)) if mask == 'causal' else (
          slow.row_matrix(V, plan[row], 64) | np.eye(64, dtype=bool))
      dense = torch.where(torch.tensor(allowed), 0.0, torch.finfo(torch.float32).min)
      with torch.no_grad():
        want = model(torch.tensor(batch.token[row:row + 1]).long(),
                     attention_mask=dense[None, None],
                     position_ids=torch.tensor(batch.position[row:row + 1]).long()).logits[0]
      real = (batch.document[row] > 0) | (mask == 'causal')
      assert np.abs(want.numpy()).max() > 0.5
      np.testing.assert_allclose(np.asarray(got[row])[real], want.numpy()[real], atol=1e-4)


def test_logits_at_2048_tokens(tmp_path):
  """Rotary frequencies count most at late positions; width 256, heads of 128."""
  torch.manual_seed(0)
  model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
      vocab_size=V.size, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
      num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False, rope_theta=1e6,
      attn_implementation='eager', audio_token_id_start=V.audio_threshold, mask_token=V.mask))
  for name, parameter in model.named_parameters():  # sharp attention, so that positions matter
    parameter.data.add_((0.1 if 'q_proj' in name or 'k_proj' in name else 0.05)
                        * torch.randn_like(parameter))
  model.eval().save_pretrained(tmp_path)
  config, vocab, params = import_hf.read(tmp_path)
  token = np.random.default_rng(0).integers(0, V.audio_threshold, (1, 2048))
  index = np.arange(2048)[None]
  ours = Model(config, vocab.size)
  got = ours.logits(params, ours.hidden(params, token, index, np.zeros_like(index), index + 1))
  with torch.no_grad():
    want = model(torch.tensor(token)).logits.numpy()
  difference = np.abs(np.asarray(got) - want).max()
  print(f'largest difference {difference:.1e}; largest logit {np.abs(want).max():.1f}')
  assert difference < 4e-5


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_transformers_reads_what_we_write(tmp_path, dtype):
  """Plain Qwen2, without our PyTorch code: every tensor is found and none is left over."""
  config = ModelConfig(**directories.SMALL, tie_word_embeddings=False)
  values = directories.write(tmp_path, config, V.size, dtype, shard_bytes=20_000)
  model, report = transformers.Qwen2ForCausalLM.from_pretrained(
      tmp_path, output_loading_info=True, dtype=getattr(torch, dtype))
  assert not any(report[kind] for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
  found = model.state_dict()
  assert set(found) == set(values)
  for name, value in values.items():
    np.testing.assert_array_equal(found[name].float().numpy(), value.astype(np.float32))
  model.save_pretrained(tmp_path / 'again')
  folder = safetensors_io.Folder(tmp_path / 'again')
  assert folder.read(tensor_names.HEAD).tobytes() == values[tensor_names.HEAD].tobytes()
