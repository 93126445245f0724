"""Every setting: name, type, default, meaning [unit], and the check of its value.

A number's type names its range (config/ranges.py), which is checked when a group is made. Checks
of names and of several settings are in __post_init__. docs/config.md is generated from this file:
the comment beside a field is its meaning.
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from ttt_jax.config.ranges import (
    Count, Factor, MeshSize, Natural, NonNegative, OpenShare, Positive, Probability, Seed, Settings,
    Share, TopShare)
from ttt_jax.errors import UserError

ATTENTIONS = ('auto', 'dense', 'blockwise', 'pallas', 'tokamax')
REMATS = ('none', 'dots', 'attention', 'full', 'offload')  # from most memory to least
PROJECTIONS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
OPTIMIZERS = ('adamw', 'adafactor', 'muon')
RULES = ('confidence', 'margin', 'entropy', 'threshold', 'prior')
SCHEDULES = ('linear', 'shifted')
SOFTMAXES = ('full', 'audio')
JUDGE_DEVICES = ('cpu', 'cuda')
TTS_PROMPTS = ('none', 'turn')
GUIDANCE_CONTEXTS = ('published', 'begin')
WORDS = ('paper', 'default')         # rules of tokens/words.py
PRESETS = ('default', 'published')  # of generate; their values: preset_values
# What the published decoding loop fixes, and what its inference script passes to it: 200 steps for
# spans of 2,600 tokens in blocks of 26, that is 2 steps per block.
_PUBLISHED_LOOP = {'rule': 'confidence', 'schedule': 'linear', 'softmax': 'full',
                   'guidance_context': 'published', 'min_span': 1, 'text_gap': 0}
_PUBLISHED_SCRIPT = {'block': 26, 'steps': 2, 'max_span': 2600, 'temperature': 0.0, 'top_k': 10,
                     'top_p': 0.95, 'audio_temperature': 0.0, 'guidance': 0.1}
LEAST_SHARE = 2.0 ** -16  # of a split in a mix
VERIFY = ('checksums', 'sizes')  # how checkpoint files are compared with what was written
SCORES = ('loss', 'text_nll', 'masked_nll')  # of an evaluation during training
AR_MEANS = ('tokens', 'classes')
T_SAMPLINGS = ('uniform', 'stratified')
T_UNITS = ('document', 'span')
MASK_WEIGHTS = ('rate', 'count')
MIRRORS = ('none', 'masks', 'draws')
PROFILE_PROCESSES = ('first', 'all')
PROFILE_STEPS = 100  # most steps of a trace: it is hard to open one of many millions of events


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise UserError(message)


def _choice(key: str, value: str, known: tuple[str, ...]) -> None:
  _require(value in known, f'config key {key} is {value!r}; use '
           + ', '.join(repr(name) for name in known[:-1]) + f' or {known[-1]!r}.')


@dataclasses.dataclass(frozen=True)
class VocabConfig(Settings, group='vocab'):
  text: str = 'bytes'          # text tokenizer: 'bytes', or 'qwen2.5', read from `tokenizer`
  tokenizer: str = ''          # path or URL of the tokenizer.json or qwen.tiktoken of 'qwen2.5'

  def __post_init__(self):
    super().__post_init__()
    _require(self.text in ('bytes', 'qwen2.5'),
             f"config key vocab.text is {self.text!r}; use 'bytes' or 'qwen2.5'.")
    _require(self.text == 'bytes' or bool(self.tokenizer),
             "config key vocab.tokenizer must name tokenizer.json or qwen.tiktoken when "
             "vocab.text is 'qwen2.5'.")


@dataclasses.dataclass(frozen=True)
class CodecConfig(Settings, group='codec'):
  name: str = 'mel'            # 'mel' (fitted by prepare), 'codec2', 'glm4_voice' or 'module:Class'
  codebooks: Count = 1         # codec 'mel': residual codebooks, one token of each per patch
  codes: Count = 2048          # codec 'mel': codes per codebook
  frames: Count = 2            # codec 'mel': frames of 11.6 ms per patch; 2 = 43 patches/s
  mode: str = '1200'           # codec 'codec2': bit rate, '700C', '1200', '1300' or '3200' [bits/s]
  weights: str = ''            # codec 'glm4_voice': folder or URL of the tokenizer; '' = none
  decoder: str = ''            # codec 'glm4_voice': PyTorch decoder 'module:Class'; '' = no sound
  decoder_weights: str = ''    # codec 'glm4_voice': folder or URL of the decoder's weights

  def __post_init__(self):
    super().__post_init__()


@dataclasses.dataclass(frozen=True)
class Source(Settings, group='data.sources'):
  """One input of `ttt-jax prepare`."""
  path: str = ''               # file, folder or glob pattern, in the current folder or the workdir
  task: str = ''               # task made of recordings (data/records/tasks.py); '' = records
  prompt: str | None = None    # system prompt; None = default wording of the task, '' = none
  split: str = 'train'         # split of its rows; splits named 'heldout...' are never trained on
  repeat: NonNegative = 1.0    # copies of each record, on average; 0.5 takes every second record
  join_most: Count = 1         # recordings: `join_count` longer ones are made of 2 to this many
  join_count: Natural = 0      # recordings: number of joined recordings to add; 0 = none
  type: str = 'IT'             # default type of records: 'IT' (instruction), 'PT' (pretraining)
  # public corpus in the folder `path`, such as 'librispeech'; '' = recognised by its files
  corpus: str = ''
  # its parts, such as 'train-clean-100,train-clean-360', or train, dev, test; '' = the training
  # parts, or the test parts if `split` is held out
  subset: str = ''
  # its transcripts: 'default' (see docs/data.md), 'raw' (as written), 'lower' or 'upper'
  transcript: str = 'default'
  speech: Probability = 0.5    # task 'pt': probability that a recorded piece is spoken, in [0, 1]

  def __post_init__(self):
    super().__post_init__()
    _require(self.type in ('IT', 'PT'), f"data source type is {self.type!r}; use 'IT' or 'PT'.")
    _choice('data.sources.transcript', self.transcript, ('default', 'raw', 'lower', 'upper'))


@dataclasses.dataclass(frozen=True)
class Stage(Settings, group='data.stages'):
  """One stage of the curriculum: rows of `split`, or of a `mix`, for `steps` steps."""
  split: str = 'train'         # split that the stage reads, unless it has a `mix`
  steps: Natural = 0           # length of the stage; 0 = to the end (last stage only) [steps]
  # Weights of several splits that the stage mixes, such as {'asr': 2, 'tts': 1}; `split` is unused.
  mix: Mapping[str, float] | None = dataclasses.field(default=None, hash=False)

  def __post_init__(self):
    super().__post_init__()
    if self.mix is None:
      return
    _require(bool(self.mix), 'config key data.stages: a mix is empty; give splits their weights, '
             "such as {'asr': 2, 'tts': 1}, or leave it out.")
    _require(self.split == 'train', f'config key data.stages: a stage has both split '
             f'{self.split!r} and mix {dict(self.mix)}; leave one of them out.')
    for name, weight in self.mix.items():
      number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
      _require(number and math.isfinite(weight) and weight > 0, 'config key data.stages: the '
               f'weight of split {name!r} in a mix is {weight!r}; it must be a positive number.')
    total = sum(self.mix.values())
    for name, weight in self.mix.items():
      _require(weight / total >= LEAST_SHARE, 'config key data.stages: the weight of split '
               f'{name!r} in a mix is {weight!r}, less than 1/{round(1 / LEAST_SHARE):,} of the '
               'sum; give it more or leave it out.')

  def splits(self) -> dict[str, float]:
    """Split -> weight of every split that this stage reads, the largest weight first."""
    return dict(sorted((self.mix or {self.split: 1.0}).items(), key=lambda item: -item[1]))


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings, group='data'):
  path: str = 'data'           # folder of the prepared set, relative to the workdir
  # inputs of `ttt-jax prepare`; '@FILE' is a data config of the published code (docs/data.md)
  sources: tuple[Source, ...] = ()
  root: str = ''               # folder in which relative paths of sources are looked up first
  stages: tuple[Stage, ...] = (Stage(),)  # curriculum; every stage but the last needs steps
  seq_len: Count = 2048        # T, the length of a packed row [tokens]
  text_chunk: Count = 13       # text per chunk of an interleaved answer [tokens]
  audio_chunk: Count = 26      # speech per chunk of an interleaved answer [codes]
  span_fill: Count = 1         # silence pads an answer's last span to multiples of this [tokens]
  form: str = 'default'        # strings: 'default' (audio markup is read), 'published' (as there)
  truncate: str = 'span'       # where documents are cut to a row: 'turn', 'span', 'anywhere', 'no'
  strict: bool = True          # stop at the first bad record; False = leave bad records out
  max_rejects: Probability = 0.01  # largest share of records that may be left out, in [0, 1]
  audio_roots: tuple[str, ...] = ()  # folders of held-out recordings beside codes, see docs/data.md
  workers: Natural = 0         # processes of `ttt-jax prepare`; 0 = one per CPU core
  runner: str = 'local'        # what computes the jobs of `prepare`: 'local' (this machine), 'ray'
  # address of the Ray cluster; '' = RAY_ADDRESS, or else the cluster that runs on this machine
  ray_address: str = ''
  sst: Probability = 0.5       # SST: probability of cutting a document's last quad span, in [0, 1]
  shuffle: bool = True         # shuffle the rows anew in every epoch
  threads: Natural = 4         # reader threads of the loader; 0 = read in the training thread

  def __post_init__(self):
    super().__post_init__()
    _require(self.truncate in ('turn', 'span', 'anywhere', 'no'),
             f"config key data.truncate is {self.truncate!r}; use 'turn', 'span', 'anywhere' or "
             "'no'.")
    _require(self.form in ('default', 'published'),
             f"config key data.form is {self.form!r}; use 'default' or 'published'.")
    _choice('data.runner', self.runner, ('local', 'ray'))
    _require(all(stage.steps > 0 for stage in self.stages[:-1]) and bool(self.stages),
             'config key data.stages: every stage but the last needs a positive number of steps.')


@dataclasses.dataclass(frozen=True)
class LoraConfig(Settings, group='model.lora'):
  """Low-rank adapters (LoRA, arXiv 2106.09685) on a frozen model."""
  rank: Natural = 0            # rank of the adapters; 0 = no adapters, all parameters are trained
  alpha: Positive = 16.0       # adapters are scaled by alpha / rank
  dropout: Share = 0.0         # dropout probability of the adapters' inputs in training, in [0, 1)
  targets: tuple[str, ...] = PROJECTIONS  # matrices that have an adapter, by default all

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  def __post_init__(self):
    super().__post_init__()
    for name in self.targets:
      _choice('model.lora.targets', name, PROJECTIONS)
    _require(bool(self.targets) or not self.rank,
             'config key model.lora.targets is empty; name at least one of '
             + ', '.join(PROJECTIONS) + '.')


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings, group='model'):
  """Qwen2.5's decoder; the defaults are a small model for a laptop."""
  num_layers: Count = 4        # Transformer layers
  hidden_size: Count = 256     # width of the residual stream
  num_attention_heads: Count = 4  # query heads
  num_key_value_heads: Count = 2  # key and value heads; divides num_attention_heads
  head_dim: Count = 64         # width of an attention head; even
  intermediate_size: Count = 768  # inner width of SwiGLU
  rope_theta: Positive = 1e6   # base of the RoPE frequencies
  rms_norm_eps: Positive = 1e-6  # epsilon of RMSNorm
  tie_word_embeddings: bool = True  # the embedding table is also the output head
  vocab_multiple: Count = 128  # embedding rows are padded to a multiple of this
  dtype: str = 'float32'       # compute dtype, 'float32' or 'bfloat16'; parameters are float32
  scan_unroll: Count = 1       # layers per iteration of the scan over layers
  attention: str = 'auto'      # 'auto' (by device), 'dense', 'blockwise', 'pallas' (TPU), 'tokamax'
  attention_block: Count = 512  # queries and keys per block, 'blockwise' and 'pallas' [tokens]
  remat: str = 'none'          # what the backward pass recomputes, from most to least memory
  lora: LoraConfig = LoraConfig()  # low-rank adapters

  def __post_init__(self):
    super().__post_init__()
    _require(self.num_attention_heads % self.num_key_value_heads == 0,
             f'config keys model.num_attention_heads={self.num_attention_heads} and '
             f'model.num_key_value_heads={self.num_key_value_heads}: '
             'the number of query heads must be a multiple of the number of key heads.')
    _require(self.head_dim % 2 == 0,
             f'config key model.head_dim is {self.head_dim}; RoPE needs an even number.')
    _require(self.dtype in ('float32', 'bfloat16'),
             f"config key model.dtype is {self.dtype!r}; use 'float32' or 'bfloat16'.")
    _choice('model.attention', self.attention, ATTENTIONS)
    _choice('model.remat', self.remat, REMATS)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Settings, group='objective'):
  mode: str = 'hybrid'         # 'hybrid' (TtT), or a baseline: 'ar' (next token), 'nar' (diffusion)
  mask_floor: OpenShare = 1e-3  # eps of the mask probability p = (1 - eps) t + eps, in (0, 1)
  banom: Probability = 0.3     # BANOM: probability of clean audio and the AR term alone, in [0, 1]
  banom_unit: str = 'document'  # what BANOM is drawn for: 'document', or 'batch' (per microbatch)
  ppm: Probability = 0.3       # PPM: probability of clean spans before a drawn one, in [0, 1]
  prompt_audio: str = 'bidirectional'  # attention in a user's audio: 'bidirectional' or 'causal'
  ar_weight: NonNegative = 1.0  # weight of the AR term
  diffusion_weight: NonNegative = 1.0  # weight of the diffusion term
  # baseline 'ar': 'tokens' is one mean over all targets of a document, 'classes' adds the mean over
  # its audio to that over its text, as 'hybrid' weighs them
  ar_mean: str = 'tokens'
  t_sampling: str = 'uniform'  # how t is drawn: 'uniform', or 'stratified' (docs/method.md)
  t_density: tuple[float, ...] = ()  # relative density of t over equal parts of [0, 1); () = flat
  t_unit: str = 'document'     # what a t is drawn for: 'document', or every maskable 'span'
  mask_weight: str = 'rate'    # weight of a masked token: 'rate' (1/p), 'count' (E[1/p | masks])
  # two passes per step whose draws are mirrored, u and 1 - u: 'masks' (which tokens, with one p for
  # both), 'draws' (also t, BANOM and PPM), or 'none' (one pass)
  mirror: str = 'none'
  confidence_weight: NonNegative = 0.0  # weight of the entropy of right predictions; 0 = none
  loss_chunk: Count = 512      # positions whose logits are in memory at once, per device [tokens]

  @property
  def passes(self) -> int:
    """Forward and backward passes over a row per step."""
    return 1 if self.mirror == 'none' else 2

  def plain(self) -> 'ObjectiveConfig':
    """The published objective with these probabilities and weights: one plain draw per pass."""
    return dataclasses.replace(self, t_sampling='uniform', t_density=(), t_unit='document',
                               mask_weight='rate', mirror='none', confidence_weight=0.0)

  def __post_init__(self):
    super().__post_init__()
    _require(self.mode in ('hybrid', 'ar', 'nar'),
             f"config key objective.mode is {self.mode!r}; use 'hybrid', 'ar' or 'nar'.")
    _require(self.banom_unit in ('document', 'batch'),
             f"config key objective.banom_unit is {self.banom_unit!r}; use 'document' or 'batch'.")
    _require(self.prompt_audio in ('bidirectional', 'causal'),
             f'config key objective.prompt_audio is {self.prompt_audio!r}; '
             "use 'bidirectional' or 'causal'.")
    _choice('objective.ar_mean', self.ar_mean, AR_MEANS)
    _require(self.ar_mean == 'tokens' or self.mode == 'ar', 'config key objective.ar_mean is '
             f"{self.ar_mean!r}, but objective.mode is {self.mode!r}; it belongs to 'ar'.")
    _choice('objective.t_sampling', self.t_sampling, T_SAMPLINGS)
    _choice('objective.t_unit', self.t_unit, T_UNITS)
    _choice('objective.mask_weight', self.mask_weight, MASK_WEIGHTS)
    _choice('objective.mirror', self.mirror, MIRRORS)
    never = ("objective.mode is 'ar'" if self.mode == 'ar' else
             'objective.banom is 1.0' if self.mode == 'hybrid' and self.banom == 1 else '')
    for key, default in (('mirror', 'none'), ('confidence_weight', 0.0), ('t_density', ())):
      value = getattr(self, key)
      _require(not never or value == default, f'config key objective.{key} is {value!r}, but '
               f'{never}, so no token is masked; leave one of the two out.')
    object.__setattr__(self, 't_density', tuple(self.t_density))
    # float32 computes the parts' ends and weights: far smaller parts would have neither.
    whole = sum(self.t_density)
    _require(all(density / whole >= 1e-6 for density in self.t_density) if 0 < whole < math.inf
             else not self.t_density, f'config key objective.t_density is {self.t_density!r}; use '
             'positive numbers, each of at least a millionth of their sum.')
    # Their weights, or their expectations, are derived for a flat density.
    for key, default in (('t_unit', 'document'), ('mask_weight', 'rate'),
                         ('confidence_weight', 0.0)):
      value = getattr(self, key)
      _require(not self.t_density or value == default, f'config key objective.{key} is {value!r}, '
               f'but objective.t_density needs {default!r}; leave one of the two out.')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Settings, group='optimizer'):
  name: str = 'adamw'          # 'adamw', 'adafactor' (least memory), 'muon' (matrices; else AdamW)
  learning_rate: Positive = 2e-5  # peak of the learning rate
  final_fraction: Probability = 0.0  # learning rate at the end of the cosine decay, over its peak
  warmup_ratio: Probability = 0.01  # linear warm-up, as a share of the schedule, in [0, 1]
  schedule_steps: Natural = 0  # length of warm-up and decay; 0 = train.steps [steps]
  weight_decay: NonNegative = 0.01  # decoupled weight decay; norms and biases have none
  beta1: Share = 0.9           # decay of the first moment; momentum of Muon
  beta2: Share = 0.95          # decay of the second moment
  eps: Positive = 1e-8         # epsilon of Adam
  max_grad_norm: NonNegative = 1.0  # gradients are clipped to this global norm; 0 = no clipping
  newton_steps: Count = 5      # Newton-Schulz iterations of Muon; 3 cost a small model less

  def __post_init__(self):
    super().__post_init__()
    _choice('optimizer.name', self.name, OPTIMIZERS)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Settings, group='mesh'):
  """Devices per axis; one axis may be -1: all remaining devices."""
  slices: MeshSize = 1         # TPU slices on the data-centre network; a copy of the model in each
  data: MeshSize = 1           # data parallelism: copies of the model
  fsdp: MeshSize = -1          # devices over which rows, parameters, optimizer state are sharded
  seq: MeshSize = 1            # sequence parallelism: devices that share a row's tokens
  tensor: MeshSize = 1         # tensor parallelism: devices that share heads and inner width

  def __post_init__(self):
    super().__post_init__()
    sizes = dataclasses.astuple(self)
    for axis, size in dataclasses.asdict(self).items():
      _require(size != 0, f'config key mesh.{axis} is 0; it must be at least 1, or -1.')
    _require(sizes.count(-1) <= 1,
             f'config mesh {dataclasses.asdict(self)}: sizes are positive, at most one is -1.')


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings, group='train'):
  steps: Count = 1000          # length of the training, unless `epochs` gives it [steps]
  epochs: NonNegative = 0.0    # length in passes over the rows of the stage's split; 0 = `steps`
  batch_size: Count = 8        # rows per step over all devices [rows]
  grad_accum_steps: Count = 1  # microbatches per step; divides batch_size
  log_every: Count = 20        # interval between log lines [steps]
  checkpoint_every: Count = 200  # interval between checkpoints; the last step is saved [steps]
  checkpoint_minutes: NonNegative = 0.0  # save also after this long without one; 0 = off [min]
  keep: Count = 2              # newest checkpoints that are kept
  keep_every: Natural = 0      # keep the checkpoints of multiples of this as well; 0 = none [steps]
  keep_best: str = ''          # keep also the checkpoint where this score is lowest; '' = none
  # stop after this many evaluations in a row without a better score of `keep_best`; 0 = never
  early_stopping_patience: Natural = 0
  early_stopping_threshold: NonNegative = 0.0  # better means lower by more than this [nats]
  # how checkpoint files are compared with what was written before they are read: 'checksums' reads
  # all bytes that are used; 'sizes' compares sizes alone, which is fast and misses changed bytes
  verify: str = 'checksums'
  preemption: bool = True      # SIGTERM, SIGUSR1, Ctrl-C: save, then exit; False = exit at once
  init_from: str = ''          # run, checkpoint or URL with the first parameters; '' = random
  max_minutes: NonNegative = 0.0  # stop with a checkpoint after this wall time; 0 = no limit [min]
  nonfinite_limit: Count = 5   # skipped (non-finite) updates in a row that cause a rollback
  rollback_limit: Natural = 3  # rollbacks to an earlier checkpoint before the run fails
  eval_every: Natural = 0      # interval between evaluations on held-out rows; 0 = none [steps]
  eval_batches: Count = 4      # size of an evaluation, in batches of batch_size rows [batches]
  eval_split: str = 'heldout'  # split to evaluate on
  stuck_minutes: NonNegative = 15.0  # dump all stacks after so long without a step; 0 = off [min]
  stuck_exit: bool = False     # ... and exit with code 1, for a supervisor to restart the run
  tensorboard: bool = True     # write TensorBoard event files
  wandb: str = ''              # Weights & Biases project; '' = off
  # 'AFTER:UNTIL': trace from when AFTER steps of a start are done until UNTIL are, such as '10:15',
  # also of a start that resumes (docs/profiling.md); '' = none
  profile: str = ''
  profile_processes: str = 'first'  # processes that trace these steps: 'first' or 'all'

  @property
  def profile_range(self) -> tuple[int, int] | None:
    """(AFTER, UNTIL) of ``profile``."""
    return (int(self.profile.split(':')[0]), int(self.profile.split(':')[1])
            ) if self.profile else None

  def __post_init__(self):
    super().__post_init__()
    _choice('train.verify', self.verify, VERIFY)
    _choice('train.profile_processes', self.profile_processes, PROFILE_PROCESSES)
    if self.profile:
      _require(bool(re.fullmatch(r'[0-9]{1,9}:[0-9]{1,9}', self.profile)),
               f"config key train.profile is {self.profile!r}; it must be 'AFTER:UNTIL', two "
               "numbers of steps such as '10:15'.")
      after, until = (int(number) for number in self.profile.split(':'))
      _require(1 <= after < until <= after + PROFILE_STEPS,
               f'config key train.profile is {self.profile!r}; AFTER must be at least 1, since the '
               'first step is compiled, and UNTIL larger than AFTER by at most '
               f'{PROFILE_STEPS}.')
    if self.keep_best:
      _choice('train.keep_best', self.keep_best, SCORES)
      _require(self.eval_every > 0, f'config key train.keep_best is {self.keep_best!r}, which '
               'needs train.eval_every, the interval between evaluations.')
    _require(not self.early_stopping_patience or bool(self.keep_best),
             f'config key train.early_stopping_patience is {self.early_stopping_patience}, which '
             'needs train.keep_best, the score to watch.')
    _require(self.batch_size % self.grad_accum_steps == 0,
             f'config keys train.batch_size={self.batch_size} and '
             f'train.grad_accum_steps={self.grad_accum_steps}: the rows must divide evenly.')


@dataclasses.dataclass(frozen=True)
class GenerateConfig(Settings, group='generate'):
  # Values that a preset sets are read where settings are: config files, the command line, and
  # TextToTalk.generate. A setting that stands beside the preset's name, or comes later, overrides
  # them.
  preset: str = 'default'      # decoding loop: 'default', or 'published' (docs/generation.md)
  # Sampling parameters of a request. They are inputs of the compiled steps: no recompilation.
  block: Count = 32            # masks appended at a time in an open span [tokens]
  steps: Count = 10            # forward passes per block
  min_span: Count = 1          # shortest span, its end token included [tokens]
  max_span: Count = 640        # longest span; then its end token is forced [tokens]
  text_gap: Natural = 0        # least text between the end of a span and the next one [tokens]
  max_tokens: Count = 1024     # prompt and answer together [tokens]
  temperature: NonNegative = 0.0  # text: softmax temperature; 0 = greedy
  top_k: Natural = 0           # text: sample from the k most likely tokens; 0 = off
  top_p: TopShare = 1.0        # text: sample from the smallest set of this probability, in (0, 1]
  audio_temperature: NonNegative = 0.0  # audio: temperature of the Gumbel noise; 0 = none
  guidance: Factor = 0.0       # guidance w in uncond + (1 + w)(cond - uncond); 0 = off
  rule: str = 'confidence'     # which masked positions a step commits: see generate/unmasking.py
  threshold: Probability = 0.9  # rule 'threshold': least confidence that is committed at once
  entropy_budget: NonNegative = 0.35  # rule 'entropy': entropy committed beyond the schedule [nats]
  schedule: str = 'linear'     # commits per step: 'linear' (equal), or 'shifted' by `shift`
  shift: Positive = 0.5        # schedule 'shifted': below 1 commits fewer in early steps
  seed: Natural = 0            # seed of all draws
  # Settings of the engine; changing them compiles again.
  guidance_context: str = 'published'  # unconditional input: 'published', or 'begin' (span alone)
  softmax: str = 'full'        # ids of the confidence: 'full' (all, as published) or 'audio'
  slots: Count = 8             # requests that are decoded together
  memory: NonNegative = 0.0    # memory for their keys and values; 0 = all that is free [GiB]

  def __post_init__(self):
    super().__post_init__()
    for key, known in (('rule', RULES), ('schedule', SCHEDULES), ('softmax', SOFTMAXES),
                       ('guidance_context', GUIDANCE_CONTEXTS), ('preset', PRESETS)):
      _choice(f'generate.{key}', getattr(self, key), known)
    for key, value in _PUBLISHED_LOOP.items() if self.preset == 'published' else ():
      _require(getattr(self, key) == value,
               f'config key generate.{key} is {getattr(self, key)!r}, but generate.preset is '
               f"'published', whose loop has {value!r}; leave out generate.{key}, or use "
               "generate.preset='default'.")


def preset_values(name: str) -> dict[str, Any]:
  """The settings of ``generate`` that a preset sets, with their values; {} for an unknown name."""
  published = {**_PUBLISHED_LOOP, **_PUBLISHED_SCRIPT}
  defaults = {field.name: field.default for field in dataclasses.fields(GenerateConfig)}
  return {'published': published,
          'default': {key: defaults[key] for key in published}}.get(name, {})


def with_preset(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of ``generate``: ``base``, then the values of the preset that ``changes`` names, if
  ``base`` has another one, then ``changes``."""
  before = base.get('preset', 'default')
  name = changes.get('preset', before)
  # GenerateConfig says what is wrong with a name that is not text.
  values = preset_values(name) if name != before and isinstance(name, str) else {}
  return {**base, **values, **changes}


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Settings, group='evaluate'):
  split: str = 'heldout'       # held-out split to answer
  items: Natural = 40          # records per task; 0 = all
  batch: Count = 16            # requests that are generated together
  # speech recogniser: 'whisper', 'paraformer', 'sense_voice', 'zipformer', 'pocketsphinx' (digits)
  # or 'none'
  judge: str = 'whisper'
  judge_model: str = ''        # its folder or URL, or a name of Whisper; '' = tiny.en of the wheel
  judge_language: str = ''     # code of the speech's language; '' = that of the data, or detected
  judge_device: str = 'cpu'    # where the recogniser runs, 'cpu' or 'cuda'
  transcripts: str = ''        # file that keeps the judge's transcripts for others; '' = none
  bound_samples: Count = 4     # noise draws per document for the audio bound
  words: str = 'paper'         # words that --suite compares: 'paper' or 'default' (tokens/words.py)
  # suite 'tts': folder or URL of DNSMOS; '' = the wheel speechmos; 'none'
  dnsmos: str = ''
  # suite 'tts': ONNX file of speaker embeddings, or its URL; '' = no similarity
  speaker_model: str = ''
  tts_prompt: str = 'none'     # suite 'tts': use of prompt recordings, 'none' or 'turn' before it
  llm_judge_url: str = ''      # suite 'voicebench': OpenAI-compatible server; '' = no LLM is asked
  llm_judge_model: str = ''    # suite 'voicebench': the model that the server is asked for

  def __post_init__(self):
    super().__post_init__()
    _choice('evaluate.words', self.words, WORDS)
    _choice('evaluate.judge_device', self.judge_device, JUDGE_DEVICES)
    _choice('evaluate.tts_prompt', self.tts_prompt, TTS_PROMPTS)


@dataclasses.dataclass(frozen=True)
class ScoreConfig(Settings, group='score'):
  split: str = 'heldout'       # held-out split to score
  items: Natural = 40          # records per task; 0 = all
  repeats: Count = 2           # passes over each span; their spread gives the standard error
  levels: Count = 64           # numbers of masks per pass; shorter spans take every number
  tokens: Count = 4096         # tokens that are computed at once [tokens]

  def __post_init__(self):
    super().__post_init__()


@dataclasses.dataclass(frozen=True)
class ServeConfig(Settings, group='serve'):
  queue: Natural = 64          # requests that wait while generate.slots are decoded; more get a 503
  max_body: Positive = 32.0    # largest body of a request [MiB]
  max_audio: Positive = 120.0  # longest recording in a request [s]
  timeout: Positive = 300.0    # longest time for a request, its body included [s]
  shutdown: NonNegative = 30.0  # on SIGTERM, time to finish what is open before it is cut off [s]
  workers: Count = 2           # threads that encode and decode sound
  # Silence that stays at both ends of a user's recording [s]. Models are mostly trained on trimmed
  # recordings, and a microphone is opened before and closed after the words.
  silence: NonNegative = 0.1
  # Length of the first piece of sound that is sent [s]: a player that starts with it has as much
  # time until the next one. The larger it is, the later an answer may begin.
  first_sound: NonNegative = 0.3
  # Earlier turns of a spoken conversation that the model reads, with their answers; a session may
  # set another number. 0 suits models that were trained on single turns.
  history: Natural = 1000

  def __post_init__(self):
    super().__post_init__()


@dataclasses.dataclass(frozen=True)
class Config(Settings, group=''):
  name: str = 'ttt'            # name of the run, for reports
  seed: Seed = 0               # seed of everything that is drawn
  hardware: str = ''           # preset of the config file that was applied; '' = none
  vocab: VocabConfig = VocabConfig()  # text tokenizer
  codec: CodecConfig = CodecConfig()  # speech codec
  data: DataConfig = DataConfig()  # sources, prepared set and loader
  model: ModelConfig = ModelConfig()  # the decoder
  objective: ObjectiveConfig = ObjectiveConfig()  # the training objective
  optimizer: OptimizerConfig = OptimizerConfig()  # optimizer and learning rate
  mesh: MeshConfig = MeshConfig()  # devices per mesh axis
  train: TrainConfig = TrainConfig()  # the training loop
  generate: GenerateConfig = GenerateConfig()  # sampling and the generation engine
  evaluate: EvaluateConfig = EvaluateConfig()  # `ttt-jax evaluate`
  score: ScoreConfig = ScoreConfig()  # `ttt-jax score`
  serve: ServeConfig = ServeConfig()  # `ttt-jax serve`
