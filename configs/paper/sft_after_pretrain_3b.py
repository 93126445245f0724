"""Text-to-Talk 3B as in the paper, second of two stages: fine-tuning after pretraining.

  CONFIG=configs/paper/sft_after_pretrain_3b.py
  ttt-jax prepare --config $CONFIG --workdir runs/after_pretrain_3b --config.data.root=/data
  ttt-jax train --config $CONFIG --config.hardware=h100-32 --workdir runs/after_pretrain_3b

The row "Pretrain+TtT" of the paper's table. The parameters are those of the last checkpoint of
runs/pretrain_3b (pretrain_3b.py), with a new optimizer state and a new schedule; another run:
--config.train.init_from=RUN, another checkpoint: --config.train.init_from=RUN/checkpoints/20000.
Everything else is as in sft_3b.py, which lists where paper and published code differ.
"""

import pathlib

from ml_collections import ConfigDict

from ttt_jax import config as config_lib


def get_config() -> ConfigDict:
  sft_3b = pathlib.Path(__file__).with_name('sft_3b.py')
  config = config_lib.call(sft_3b, 'get_config', 'config file')
  config.name = 'sft_after_pretrain_3b'
  config.train.init_from = 'runs/pretrain_3b'
  return config
