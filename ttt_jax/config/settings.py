"""Every setting once: name, meaning, unit, default and check."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from ttt_jax.errors import UserError

ATTENTIONS = ('auto', 'dense', 'blockwise', 'pallas', 'tokamax')
REMATS = ('none', 'dots', 'attention', 'full', 'offload')  # from most memory to least
PROJECTIONS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
OPTIMIZERS = ('adamw', 'adafactor', 'muon')
RULES = ('confidence', 'margin', 'entropy', 'threshold', 'prior')
SCHEDULES = ('linear', 'shifted')
SOFTMAXES = ('full', 'audio')
GUIDANCE_CONTEXTS = ('published', 'begin')
LEAST_SHARE = 2.0 ** -16  # of a split in a mix
SCORES = ('loss', 'text_nll', 'masked_nll')  # of an evaluation during training


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise UserError(message)


def _choice(key: str, value: str, known: tuple[str, ...]) -> None:
  _require(value in known, f'config key {key} is {value!r}; use '
           + ', '.join(repr(name) for name in known[:-1]) + f' or {known[-1]!r}.')


def _positive(settings: Any, group: str, *keys: str) -> None:
  for key in keys:
    _require(getattr(settings, key) >= 1,
             f'config key {group}.{key} is {getattr(settings, key)}; it must be at least 1.')


@dataclasses.dataclass(frozen=True)
class VocabConfig:
  text: str = 'bytes'          # 'bytes', or 'qwen2.5' with `tokenizer`
  tokenizer: str = ''          # path of tokenizer.json or qwen.tiktoken for 'qwen2.5'

  def __post_init__(self):
    _require(self.text in ('bytes', 'qwen2.5'),
             f"config key vocab.text is {self.text!r}; use 'bytes' or 'qwen2.5'.")
    _require(self.text == 'bytes' or bool(self.tokenizer),
             "config key vocab.tokenizer must name tokenizer.json or qwen.tiktoken when "
             "vocab.text is 'qwen2.5'.")


@dataclasses.dataclass(frozen=True)
class CodecConfig:
  name: str = 'mel'            # 'mel' (fitted by prepare), 'codec2', 'glm4_voice', 'module:Class'
  codebooks: int = 1           # mel: residual codebooks, tokens per patch
  codes: int = 2048            # mel: codes per codebook
  frames: int = 2              # mel: frames of 11.6 ms per patch (2 -> 43.07 patches/s)
  mode: str = '1200'           # codec2: '700C', '1200', '1300' or '3200' bits/s
  weights: str = ''            # glm4_voice: folder of the tokenizer; '' = audio comes as codes
  decoder: str = ''            # glm4_voice: PyTorch 'module:Class', see audio/glm4/decoder.py
  decoder_weights: str = ''    # glm4_voice: folder of that decoder

  def __post_init__(self):
    _positive(self, 'codec', 'codebooks', 'codes', 'frames')


@dataclasses.dataclass(frozen=True)
class Source:
  """One input of `ttt-jax prepare`; see ttt_jax/data/prepare/prepare.py."""
  path: str = ''               # file, folder or pattern: records, or recordings if `task` is set
  task: str = ''               # made of recordings: one of data/records/tasks.py; '' = records
  prompt: str | None = None    # system prompt; None = the task's own wording, '' = no system turn
  split: str = 'train'         # name of the row set it goes to; 'heldout' is never trained on
  repeat: float = 1.0          # sample ratio: how often each record is taken (0.5: every second)
  join_most: int = 1           # recordings: also join up to this many into longer ones
  join_count: int = 0          # recordings: how many joined ones to make
  type: str = 'IT'             # 'IT' instruction, 'PT' pretraining document
  speech: float = 0.5          # task 'pt': share of a document's spoken pieces that stay speech

  def __post_init__(self):
    _require(self.type in ('IT', 'PT'), f"data source type is {self.type!r}; use 'IT' or 'PT'.")
    _require(self.repeat >= 0, f'data source repeat is {self.repeat}; it must not be negative.')
    _require(0 <= self.speech <= 1,
             f'data source speech is {self.speech}; a probability is in [0, 1].')


@dataclasses.dataclass(frozen=True)
class Stage:
  """One leg of the curriculum: rows of `split`, or of a `mix`, for `steps` steps."""
  split: str = 'train'
  steps: int = 0               # 0 = to the end
  # Or rows of several splits by weight, such as {'asr': 2, 'tts': 1}; `split` says nothing then.
  mix: Mapping[str, float] | None = dataclasses.field(default=None, hash=False)

  def __post_init__(self):
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
               'whole; give it more or leave it out.')

  def splits(self) -> dict[str, float]:
    """Split -> weight of all that this stage reads, the weightiest first."""
    return dict(sorted((self.mix or {self.split: 1.0}).items(), key=lambda item: -item[1]))


@dataclasses.dataclass(frozen=True)
class DataConfig:
  path: str = 'data'           # prepared set; relative to the workdir
  sources: tuple[Source, ...] = ()
  stages: tuple[Stage, ...] = (Stage(),)
  seq_len: int = 2048          # T: tokens per packed row
  text_chunk: int = 13         # interleaving: text tokens per chunk ...
  audio_chunk: int = 26        # ... then this many codes
  span_fill: int = 1           # fill an answer's last span with silence to whole multiples of this
  truncate: str = 'span'       # cut what outgrows a row: at a 'turn', 'span', 'anywhere', or 'no'
  strict: bool = True          # stop at the first bad record; False: leave it out and say so ...
  max_rejects: float = 0.01    # ... unless more than this share of the records is bad
  workers: int = 0             # processes of `prepare`; 0 = one for each core
  sst: float = 0.5             # probability that a document's last quad span is cut short
  shuffle: bool = True
  threads: int = 4             # reader threads of the loader

  def __post_init__(self):
    _positive(self, 'data', 'seq_len', 'text_chunk', 'audio_chunk', 'span_fill')
    _require(self.truncate in ('turn', 'span', 'anywhere', 'no'),
             f"config key data.truncate is {self.truncate!r}; use 'turn', 'span', 'anywhere' or "
             "'no'.")
    _require(0 <= self.max_rejects <= 1,
             f'config key data.max_rejects is {self.max_rejects}; a share is in [0, 1].')
    _require(self.workers >= 0, f'config key data.workers is {self.workers}; it must be 0 or more.')
    _require(0 <= self.sst <= 1, f'config key data.sst is {self.sst}; a probability is in [0, 1].')
    _require(all(stage.steps > 0 for stage in self.stages[:-1]) and bool(self.stages),
             'config key data.stages: every stage but the last needs a positive number of steps.')


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters on a frozen model (model/lora.py)."""
  rank: int = 0                # columns of A; 0 = no adapters, everything is trained
  alpha: float = 16.0          # an adapter counts alpha / rank times
  dropout: float = 0.0         # of its inputs, while training
  targets: tuple[str, ...] = PROJECTIONS  # which matrices have one

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  def __post_init__(self):
    _require(self.rank >= 0, f'config key model.lora.rank is {self.rank}; it must not be negative.')
    _require(0 <= self.dropout < 1,
             f'config key model.lora.dropout is {self.dropout}; a probability is in [0, 1).')
    for name in self.targets:
      _choice('model.lora.targets', name, PROJECTIONS)
    _require(bool(self.targets) or not self.rank,
             'config key model.lora.targets is empty; name at least one of '
             + ', '.join(PROJECTIONS) + '.')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Qwen2.5's decoder; the defaults are a laptop's."""
  num_layers: int = 4
  hidden_size: int = 256       # width of the residual stream
  num_attention_heads: int = 4
  num_key_value_heads: int = 2
  head_dim: int = 64
  intermediate_size: int = 768  # inner width of SwiGLU
  rope_theta: float = 1e6
  rms_norm_eps: float = 1e-6
  tie_word_embeddings: bool = True  # output head = embedding table
  vocab_multiple: int = 128    # embedding rows are padded to a multiple of this
  dtype: str = 'float32'       # compute dtype: 'float32' or 'bfloat16'; weights stay float32
  scan_unroll: int = 1         # layers per scan step
  attention: str = 'auto'      # 'dense', 'blockwise', 'pallas' (TPU), 'tokamax' (GPU), or by device
  attention_block: int = 512   # queries and keys per block of the blockwise and Pallas forms
  remat: str = 'none'          # what a backward pass recomputes: see model/remat.py
  lora: LoraConfig = LoraConfig()

  def __post_init__(self):
    _positive(self, 'model', 'num_layers', 'hidden_size', 'num_attention_heads',
              'num_key_value_heads', 'head_dim', 'intermediate_size', 'vocab_multiple',
              'scan_unroll')
    _require(self.num_attention_heads % self.num_key_value_heads == 0,
             f'config keys model.num_attention_heads={self.num_attention_heads} and '
             f'model.num_key_value_heads={self.num_key_value_heads}: '
             'every key head must serve the same number of query heads.')
    _require(self.head_dim % 2 == 0,
             f'config key model.head_dim is {self.head_dim}; RoPE needs an even number.')
    _require(self.dtype in ('float32', 'bfloat16'),
             f"config key model.dtype is {self.dtype!r}; use 'float32' or 'bfloat16'.")
    _choice('model.attention', self.attention, ATTENTIONS)
    _choice('model.remat', self.remat, REMATS)
    _positive(self, 'model', 'attention_block')


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  mode: str = 'hybrid'         # 'hybrid' (TtT), or the baselines 'ar' and 'nar'
  mask_floor: float = 1e-3     # eps: p = (1 - eps) t + eps
  banom: float = 0.3           # probability of clean audio and the AR term alone
  banom_unit: str = 'document' # 'document', or 'batch' (the published code: once per microbatch)
  ppm: float = 0.3             # probability of keeping the spans before a drawn one clean
  prompt_audio: str = 'bidirectional'  # inside a user's span; 'causal' as in the paper's text
  ar_weight: float = 1.0
  diffusion_weight: float = 1.0
  loss_chunk: int = 512        # positions whose logits exist at once, per device

  def __post_init__(self):
    _require(self.mode in ('hybrid', 'ar', 'nar'),
             f"config key objective.mode is {self.mode!r}; use 'hybrid', 'ar' or 'nar'.")
    _require(self.banom_unit in ('document', 'batch'),
             f"config key objective.banom_unit is {self.banom_unit!r}; use 'document' or 'batch'.")
    _require(self.prompt_audio in ('bidirectional', 'causal'),
             f'config key objective.prompt_audio is {self.prompt_audio!r}; '
             "use 'bidirectional' or 'causal'.")
    for key, value in (('banom', self.banom), ('ppm', self.ppm)):
      _require(0 <= value <= 1,
               f'config key objective.{key} is {value}; a probability is in [0, 1].')
    _positive(self, 'objective', 'loss_chunk')
    _require(0 < self.mask_floor < 1,
             f'config key objective.mask_floor is {self.mask_floor}; use a number in (0, 1).')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  name: str = 'adamw'          # or 'adafactor' (least memory), 'muon' (matrices; AdamW the rest)
  learning_rate: float = 2e-5
  final_fraction: float = 0.0  # the cosine ends at this fraction of learning_rate
  warmup_ratio: float = 0.01
  weight_decay: float = 0.01   # not on norms and biases
  beta1: float = 0.9           # momentum; of Muon's matrices, too
  beta2: float = 0.95
  eps: float = 1e-8
  max_grad_norm: float = 1.0       # global gradient norm; 0 = off

  def __post_init__(self):
    _choice('optimizer.name', self.name, OPTIMIZERS)
    _require(self.learning_rate > 0, 'config key optimizer.learning_rate must be positive, '
             f'not {self.learning_rate}.')
    _require(0 <= self.warmup_ratio <= 1, 'config key optimizer.warmup_ratio must be in '
             f'[0, 1], not {self.warmup_ratio}.')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices per axis; -1 on one axis takes what the others leave."""
  slices: int = 1              # TPU slices joined by the data-centre network; copies of the model
  data: int = 1
  fsdp: int = -1
  seq: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = dataclasses.astuple(self)
    _require(all(n == -1 or n >= 1 for n in sizes) and sizes.count(-1) <= 1,
             f'config mesh {dataclasses.asdict(self)}: sizes are positive, at most one is -1.')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  steps: int = 1000
  batch_size: int = 8          # rows per step over the whole mesh
  grad_accum_steps: int = 1    # the rows of a step in this many microbatches
  log_every: int = 20          # steps
  checkpoint_every: int = 200  # steps; the last step is always saved
  checkpoint_minutes: float = 0.0  # save also when this long has passed since the last; 0 = off
  keep: int = 2                # newest checkpoints; the rules below keep more
  keep_every: int = 0          # keep those of every so many steps for ever; 0 = none
  keep_best: str = ''          # a SCORES name: save and keep the step where it is lowest
  preemption: bool = True      # SIGTERM, SIGUSR1, Ctrl-C: save, then leave; False = leave at once
  init_from: str = ''          # start from the parameters of this checkpoint directory
  max_minutes: float = 0.0     # stop early, with a checkpoint, after this wall time; 0 = never
  nonfinite_limit: int = 5     # skipped updates in a row, after which the run goes back
  rollback_limit: int = 3      # times that a run goes back before it gives up
  eval_every: int = 0          # steps between evaluations on held-out rows; 0 = none
  eval_batches: int = 4        # batches of batch_size in an evaluation
  eval_split: str = 'heldout'  # of the prepared set
  stuck_minutes: float = 15.0  # without a finished step (or save ...): dump all stacks; 0 = off
  stuck_exit: bool = False     # ... and leave with exit code 1, for a supervisor to start again
  tensorboard: bool = True
  wandb: str = ''              # Weights & Biases project; '' = off

  def __post_init__(self):
    _positive(self, 'train', 'steps', 'batch_size', 'grad_accum_steps',
              'log_every', 'checkpoint_every', 'keep', 'nonfinite_limit', 'eval_batches')
    for key in ('checkpoint_minutes', 'keep_every', 'max_minutes', 'rollback_limit', 'eval_every',
                'stuck_minutes'):
      _require(getattr(self, key) >= 0, f'config key train.{key} is {getattr(self, key)}; it must '
               'not be negative.')
    if self.keep_best:
      _choice('train.keep_best', self.keep_best, SCORES)
      _require(self.eval_every > 0, f'config key train.keep_best is {self.keep_best!r}, which '
               'needs train.eval_every, the steps between evaluations.')
    _require(self.batch_size % self.grad_accum_steps == 0,
             f'config keys train.batch_size={self.batch_size} and '
             f'train.grad_accum_steps={self.grad_accum_steps}: the rows must divide evenly.')


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
  # Of a request; a policy is data, so changing one compiles nothing.
  block: int = 32              # masks appended at a time in an open span
  steps: int = 10              # forward passes per block
  min_span: int = 1            # audio tokens in one span, its end included
  max_span: int = 640          # then its end is forced
  text_gap: int = 0            # text tokens between one span and the next, at least
  max_tokens: int = 1024       # prompt and answer together
  temperature: float = 0.0     # text; 0 = greedy
  top_k: int = 0               # text; 0 = off
  top_p: float = 1.0
  audio_temperature: float = 0.0
  guidance: float = 0.0        # w of uncond + (1 + w)(cond - uncond)
  rule: str = 'confidence'     # which masks a step commits: generate/positions.py
  threshold: float = 0.9       # rule 'threshold': surer choices are committed at once
  entropy_budget: float = 0.35  # rule 'entropy': nats committed beyond the schedule
  schedule: str = 'linear'     # or 'shifted': how many per step
  shift: float = 0.5           # 'shifted': below 1 starts slowly
  seed: int = 0
  # Of the engine.
  guidance_context: str = 'published'  # or 'begin': the span alone, far cheaper
  softmax: str = 'full'        # confidence over all ids, as published; 'audio' is cheaper
  slots: int = 8               # requests answered side by side
  memory: float = 0.0          # GiB that their keys and values may take; 0 = what is free

  def __post_init__(self):
    _require(self.memory >= 0,
             f'config key generate.memory is {self.memory}; use GiB, or 0 for what is free.')
    _positive(self, 'generate', 'block', 'steps', 'min_span', 'max_span', 'max_tokens', 'slots')
    _require(0 < self.top_p <= 1, f'config key generate.top_p is {self.top_p}; use (0, 1].')
    _require(self.shift > 0, f'config key generate.shift is {self.shift}; use a positive number.')
    _require(self.rule != 'entropy' or self.entropy_budget >= 0,
             f'config key generate.entropy_budget is {self.entropy_budget}; use 0 nats or more.')
    for key, known in (('rule', RULES), ('schedule', SCHEDULES), ('softmax', SOFTMAXES),
                       ('guidance_context', GUIDANCE_CONTEXTS)):
      _choice(f'generate.{key}', getattr(self, key), known)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  split: str = 'heldout'
  items: int = 40              # records per task; 0 = all
  batch: int = 16              # requests generated together
  judge: str = 'whisper'       # 'whisper', 'pocketsphinx' or 'none'
  judge_model: str = ''        # CTranslate2 folder; '' = the one in the installed wheel
  bound_samples: int = 4       # noise draws per document for the audio bound


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
  split: str = 'heldout'
  items: int = 40              # records per task; 0 = all
  repeats: int = 2             # sweeps per span; their spread gives the standard error
  levels: int = 64             # numbers of masks per sweep; all of them in shorter spans
  tokens: int = 4096           # of all rows that are computed at once

  def __post_init__(self):
    _positive(self, 'score', 'repeats', 'levels', 'tokens')


@dataclasses.dataclass(frozen=True)
class Config:
  name: str = 'ttt'
  seed: int = 0
  hardware: str = ''           # which of the file's presets was taken; '' = none
  vocab: VocabConfig = VocabConfig()
  codec: CodecConfig = CodecConfig()
  data: DataConfig = DataConfig()
  model: ModelConfig = ModelConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()
  train: TrainConfig = TrainConfig()
  generate: GenerateConfig = GenerateConfig()
  evaluate: EvaluateConfig = EvaluateConfig()
  score: ScoreConfig = ScoreConfig()
