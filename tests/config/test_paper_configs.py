"""configs/paper: every recipe loads with every preset, and one root leads to its corpora."""

import pathlib

import pytest

from tests.data import corpora_folders
from ttt_jax import config as configs
from ttt_jax.data.records import corpora, sources

PAPER = pathlib.Path(__file__).parents[2] / 'configs' / 'paper'
NAMES = ('sft_1p5b', 'sft_3b', 'pretrain_3b', 'sft_after_pretrain_3b')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return corpora_folders.recipes(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize('name', NAMES)
def test_published_settings_with_every_preset(name):
  path = PAPER / f'{name}.py'
  known = configs.presets(path)
  assert {'a100-32', 'h100-8', 'v5p-64'} <= set(known)
  for hardware in known:
    config = configs.load(path, {'hardware': hardware})
    assert (config.train.batch_size, config.data.seq_len) == (2048, 2048)
    made = config.optimizer
    assert (made.name, made.learning_rate, made.weight_decay, made.beta2, made.warmup_ratio) == (
        'adamw', 2e-5, 0.01, 0.95, 0.01)
    assert (config.objective.banom, config.objective.ppm, config.data.sst) == (0.3, 0.3, 0.5)
    assert config.model.dtype == 'bfloat16'
    sizes = config.mesh
    devices = sizes.slices * sizes.data * sizes.fsdp * sizes.seq * sizes.tensor
    assert devices == int(hardware.rpartition('-')[2])
    micro = config.train.batch_size // config.train.grad_accum_steps
    assert micro % devices == 0, 'every device has whole rows of a microbatch'


@pytest.mark.parametrize('name', NAMES)
def test_one_root_leads_to_the_corpora(root, tmp_path, name):
  """Every source has a relative path, which data.root completes."""
  config = configs.load(PAPER / f'{name}.py', {'data.root': str(root)})
  assert not any(pathlib.Path(one.path).is_absolute() for one in config.data.sources)
  found = sources.inputs(config.data.sources, tmp_path, config.data.form, config.data.root)
  assert {one.number for one in found} == set(range(len(config.data.sources)))
  assert all(pathlib.Path(one.piece.path).is_relative_to(root) for one in found)
  assert not sources.evaluated(found) and not sources.duplicates(found)
  held = [one for one in found if one.heldout]
  assert held and all(corpora.kind(one.piece) == 'dev' for one in held
                      if isinstance(one.piece, corpora.Piece))


def test_stages_of_the_paper_follow_each_other():
  first, second, alone = (configs.load(PAPER / f'{name}.py') for name in (
      'pretrain_3b', 'sft_after_pretrain_3b', 'sft_3b'))
  assert second.train.init_from == 'runs/pretrain_3b' and not first.train.init_from
  assert first.model == second.model == alone.model
  assert (second.data, second.optimizer, second.objective) == (
      alone.data, alone.optimizer, alone.objective)
  assert first.train.steps * 2048 * 2048 == pytest.approx(200e9, rel=1e-4)


def test_the_example_of_a_data_config_is_one():
  config = configs.load(PAPER / 'sft_3b.py', {'data.sources': f'@{PAPER / "data_config.json"}'})
  assert [one.type for one in config.data.sources] == ['IT'] * 4 + ['PT'] * 2
