"""Text-to-Talk 3B as in the paper, first of two stages: interleaved pretraining.

  CONFIG=configs/paper/pretrain_3b.py
  ttt-jax prepare --config $CONFIG --workdir runs/pretrain_3b --config.data.root=/data
  ttt-jax import-hf --hf Qwen2.5-3B --config $CONFIG --workdir runs/pretrain_3b
  ttt-jax train --config $CONFIG --config.hardware=h100-32 --workdir runs/pretrain_3b

About 200 billion tokens of documents in which pieces of text are replaced by their speech: 47,684
steps of 2,048 rows of 2,048 tokens, half of them English and half Chinese. The paper gives the
number of tokens; the shares of the languages and the optimizer of this stage are not published, so
the optimizer is that of the second stage, sft_after_pretrain_3b.py.

Every document is read about once, so BANOM, PPM and SST are as in the second stage. The differences
between paper and published code that sft_3b.py lists hold here, too. A shorter run:
--config.train.steps=5000; the cosine then ends there.

Hardware: one of the presets below; docs/recipes.md has the memory and speed that `ttt-jax plan`
finds for each.
"""

import pathlib

from ml_collections import ConfigDict

from ttt_jax import config as config_lib


def get_config() -> ConfigDict:
  sft_3b = pathlib.Path(__file__).with_name('sft_3b.py')
  config = config_lib.call(sft_3b, 'get_config', 'config file')
  config.name = 'pretrain_3b'
  # Relative paths are looked up in data.root: --config.data.root=/data. The documents have pieces
  # with recordings or codes, see docs/recipes.md; each piece is spoken with probability `speech`.
  # Speech that has a transcript adds short documents.
  config.data.sources = (
      {'path': 'interleaved/en/*.jsonl', 'task': 'pt', 'speech': 0.5, 'split': 'english'},
      {'path': 'interleaved/zh/*.jsonl', 'task': 'pt', 'speech': 0.5, 'split': 'chinese'},
      {'path': 'interleaved/heldout/*.jsonl', 'task': 'pt', 'split': 'heldout'},
  )
  config.data.stages = ({'mix': {'english': 1, 'chinese': 1}},)
  config.train = ConfigDict({
      'steps': 47684, 'batch_size': 2048, 'checkpoint_every': 500, 'eval_every': 500,
  })
  return config
