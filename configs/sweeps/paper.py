"""The paper's comparison in miniature: hybrid training, its baselines and its ablations.

  make paper
  ttt-jax sweep --sweep configs/sweeps/paper.py --config configs/paper/mini.py --workdir paper \\
    --jobs 2

Seven methods, three seeds, equal parameters, data, steps and tokens. Each of the three objectives
has the learning rate that configs/sweeps/paper_rates.py found for it; the ablations have that of
'ttt'. `ttt-jax sweep --workdir paper --collect` writes the tables and the page of what is there.
"""

from ttt_jax.runs import sweep

SEEDS = 3
RATES = {'ar': 3e-3, 'nar': 6e-3, 'ttt': 1.5e-3}  # from configs/sweeps/paper_rates.py
PRETRAIN_STEPS = 500  # of the same total

# Table of the paper (arXiv 2509.20072; 3B): accuracy on LLaMA-Questions, WER on AISHELL-1 and -2.
PUBLISHED = {
    'columns': ('LLaMA-Questions, accuracy %', 'AISHELL-2, WER %', 'AISHELL-1, WER %'),
    'source': 'arXiv 2509.20072, 3B parameters',
    'rows': {
        'ar': (10.00, 54.94, 72.01),
        'nar': (0.67, 212.27, 160.58),
        'ttt': (34.68, 12.53, 13.65),
        'no_banom': (19.87, 18.58, 21.35),
        'no_ppm': (22.79, 15.63, 18.83),
        'no_sst': (10.20, 25.43, 31.03),
        'pretrained': (40.07, 6.80, 5.78),
    },
}


def get_sweep() -> sweep.Sweep:
  rate = lambda method: {'optimizer.learning_rate': RATES[method]}
  methods = {
      'ttt': rate('ttt'),
      'ar': {'objective.mode': 'ar', **rate('ar')},      # all tokens autoregressive
      'nar': {'objective.mode': 'nar', **rate('nar')},   # all answer tokens by diffusion
      # 'ar' with the weight that 'ttt' gives text: a mean over text plus a mean over audio
      'ar_classes': {'objective.mode': 'ar', 'objective.ar_mean': 'classes', **rate('ar')},
      'no_banom': {'objective.banom': 0.0, **rate('ttt')},  # no documents with clean audio
      'no_ppm': {'objective.ppm': 0.0, **rate('ttt')},   # no clean spans before a drawn one
      'no_sst': {'data.sst': 0.0, **rate('ttt')},        # no truncated spans
      'pretrained': {                                    # interleaved documents first
          'data.stages': [{'split': 'pretrain', 'steps': PRETRAIN_STEPS},
                          {'split': 'short', 'steps': 300}, {'split': 'train'}], **rate('ttt')},
  }
  return sweep.Sweep(sweep.named(methods, sweep.seeds(SEEDS)), evaluate=True, reference='ttt',
                     published=PUBLISHED)
