"""From hidden states to choices, and which masks of a block a step commits.

V = ids, P = positions that need a choice. Part of ttt_jax (Apache-2.0); it needs only torch.
"""

import dataclasses
from typing import Any, NamedTuple

import torch

RULES = ('confidence', 'margin', 'entropy', 'threshold', 'prior')
_NAMED = {'rule': RULES, 'schedule': ('linear', 'shifted'), 'softmax': ('full', 'audio'),
          'guidance_context': ('published', 'begin'), 'preset': ('default', 'published')}
# Preset 'published': what the published decoding loop fixes, and what its script passes to it.
_PUBLISHED_LOOP = {'rule': 'confidence', 'schedule': 'linear', 'softmax': 'full',
                   'guidance_context': 'published', 'min_span': 1, 'text_gap': 0}
_PUBLISHED_SCRIPT = {'block': 26, 'steps': 2, 'max_span': 2600, 'temperature': 0.0, 'top_k': 10,
                     'top_p': 0.95, 'audio_temperature': 0.0, 'guidance': 0.1}


@dataclasses.dataclass(frozen=True)
class Ids:
  """The id space, in this order: text < threshold < codes < mask < two end tokens.

  Attributes:
    threshold: config.json's audio_token_id_start.
    mask: its mask_token.
  """
  threshold: int
  mask: int

  @property
  def im_end(self) -> int:
    return self.threshold - 39

  @property
  def begin_of_audio(self) -> int:
    return self.threshold - 10

  @property
  def begin_of_quad(self) -> int:
    return self.threshold - 8

  @property
  def code_start(self) -> int:
    return self.threshold + 1

  @property
  def end_of_chunk(self) -> int:
    return self.mask + 1

  @property
  def end_of_last(self) -> int:
    return self.mask + 2

  @property
  def size(self) -> int:
    return self.mask + 3

  def is_begin(self, token: int) -> bool:
    return token in (self.begin_of_audio, self.begin_of_quad)

  def is_end(self, token: int) -> bool:
    return token in (self.end_of_chunk, self.end_of_last)


@dataclasses.dataclass(frozen=True)
class Options:
  """Sampling parameters; names, meanings and defaults are those of ttt_jax's `generate` section."""
  preset: str = 'default'      # decoding loop: 'default', or 'published' and its values
  block: int = 32              # masks appended at a time in an open span
  steps: int = 10              # decode steps per block
  min_span: int = 1            # audio tokens in one span, its end included
  max_span: int = 640          # then its end is forced
  text_gap: int = 0            # text tokens between one span and the next, at least
  max_tokens: int = 1024       # prompt and answer together
  temperature: float = 0.0     # text; 0 = greedy
  top_k: int = 0               # text; 0 = off
  top_p: float = 1.0
  audio_temperature: float = 0.0
  guidance: float = 0.0        # w of uncond + (1 + w)(cond - uncond)
  rule: str = 'confidence'     # which masks a step commits
  threshold: float = 0.9       # rule 'threshold': choices this confident are committed at once
  entropy_budget: float = 0.35  # rule 'entropy': nats committed beyond the schedule
  schedule: str = 'linear'     # or 'shifted': how many per step
  shift: float = 0.5           # 'shifted': below 1 starts slowly
  seed: int = 0
  guidance_context: str = 'published'  # unconditional pass: prefix masked; 'begin': span alone
  softmax: str = 'full'        # confidence over all ids, as published; or the 'audio' ids
  slots: int = 8               # prompts answered at the same time

  def __post_init__(self):
    for name, known in _NAMED.items():
      value = getattr(self, name)
      if value not in known:
        raise ValueError(f'{name} is {value!r}; use {" or ".join(map(repr, known))}.')
    for name in ('block', 'steps', 'min_span', 'max_span', 'max_tokens', 'slots'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} is {getattr(self, name)}; it must be at least 1.')
    if not 0 < self.top_p <= 1 or self.shift <= 0:
      raise ValueError(f'top_p is {self.top_p} and shift {self.shift}; top_p lies in (0, 1], shift '
                       'is positive.')
    for name, value in _PUBLISHED_LOOP.items() if self.published else ():
      if getattr(self, name) != value:
        raise ValueError(f"{name} is {getattr(self, name)!r}, but preset 'published' has "
                         f"{value!r}; leave out {name}, or use preset='default'.")

  @property
  def published(self) -> bool:
    """Whether choices, guidance and limits are those of the published loop."""
    return self.preset == 'published'

  @property
  def text_temperature(self) -> float:
    """In the published loop 1 where top_k or top_p is set and the temperature is 0."""
    cut = self.top_k > 0 or self.top_p < 1
    return 1.0 if self.published and cut and not self.temperature else self.temperature


def preset_values(name: str) -> dict[str, Any]:
  """The options that a preset sets, with their values; {} for an unknown name."""
  published = {**_PUBLISHED_LOOP, **_PUBLISHED_SCRIPT}
  own = {field.name: field.default for field in dataclasses.fields(Options)}
  return {'published': published,
          'default': {key: own[key] for key in published}}.get(name, {})


def options(defaults: dict[str, Any] | None, given: dict[str, Any]) -> Options:
  """Options from ``given``, then the values of the preset that it names, then the checkpoint's
  ``defaults``, then the dataclass's defaults.

  Raises:
    ValueError: an option that does not exist, or a value out of range.
  """
  names = [field.name for field in dataclasses.fields(Options)]
  unknown = [name for name in given if name not in names]
  if unknown:
    raise ValueError(f'generate_speech has no option {unknown[0]!r}; it has {", ".join(names)}.')
  kept = {name: value for name, value in (defaults or {}).items() if name in names}
  before = kept.get('preset', 'default')
  kept = {**preset_values(before), **kept}
  preset = given.get('preset', before)
  return Options(**{**kept, **(preset_values(preset) if preset != before else {}), **given})


class Wanted(NamedTuple):
  """The P positions of one request that need a choice in one step.

  Attributes:
    hidden: [P, E].
    uncond: [P, E], hidden states of guidance's unconditional pass; None without guidance.
    in_span: True in a span, False for the next text token (P = 1).
    limited: bool [P]: an end token (in a span) or a begin token (in text) is not allowed yet.
    generator: of the request's random draws.
  """
  hidden: torch.Tensor
  uncond: torch.Tensor | None
  in_span: bool
  limited: torch.Tensor
  generator: torch.Generator


class Choice(NamedTuple):
  """Lists of P numbers: chosen id; its probability; the key that ranks it; the entropy, nats."""
  token: list[int]
  confidence: list[float]
  score: list[float]
  entropy: list[float]


class Chooser:
  """Chooses ids under one set of options."""

  def __init__(self, head: torch.Tensor, ids: Ids, mode: str, settings: Options):
    """Args:
      head: [V', E], the output head's rows.
      ids, mode, settings: see ``Ids``, and 'hybrid', 'ar' or 'nar'.
    """
    self.head, self.ids, self.mode, self.settings = head, ids, mode, settings
    self.prior: torch.Tensor | None = None  # [V] log probabilities, for rule 'prior'
    number = torch.arange(ids.size, device=head.device)
    text = number < ids.threshold
    end = (number == ids.end_of_chunk) | (number == ids.end_of_last)
    begin = (number == ids.begin_of_audio) | (number == ids.begin_of_quad)
    audio = (number >= ids.code_start) & (number < ids.mask) | end
    if settings.published:  # any id; in spans any but im_end
      text, audio = torch.ones_like(text), number != ids.im_end
      end = begin = torch.zeros_like(end)
    elif mode != 'hybrid':
      text = audio = text | audio
      end, begin = number == ids.im_end, torch.zeros_like(end)
    # Allowed ids [4, V]: text, text without begin tokens, span, span without end tokens.
    self._allowed = torch.stack([text, text & ~begin, audio, audio & ~end])

  def logits(self, hidden: torch.Tensor, first: int = 0) -> torch.Tensor:
    """float32 [P, V - first]."""
    return (hidden @ self.head[first:self.ids.size].T).float()

  def __call__(self, wanted: Wanted) -> Choice:
    s = self.settings
    # With softmax over the audio ids, only their rows of the head are needed.
    narrow = s.softmax == 'audio' and self.mode == 'hybrid' and wanted.in_span
    first = self.ids.threshold if narrow else 0
    logits = self.logits(wanted.hidden, first)
    if wanted.uncond is not None:
      uncond = self.logits(wanted.uncond, first)
      logits = uncond + (1 + s.guidance) * (logits - uncond)  # classifier-free guidance
    allowed = self._allowed[2 * wanted.in_span + wanted.limited.long(), first:]
    masked = logits.masked_fill(~allowed, -torch.inf)
    temperature = s.audio_temperature if wanted.in_span else s.text_temperature
    token = masked.argmax(-1)
    if temperature > 0:
      token = self._sample(masked / max(temperature, 1e-6), wanted)
    space = masked if narrow or s.published else logits
    total = space.logsumexp(-1)
    log_p = space.gather(1, token[:, None])[:, 0] - total
    confidence = log_p.exp()
    score, entropy = self._scores(space, masked, total, log_p, confidence, first + token)
    # One transfer to the host; ids are exact in float64.
    rows = torch.stack([x.double() for x in (first + token, confidence, score, entropy)]).tolist()
    return Choice([int(x) for x in rows[0]], *rows[1:])

  def _sample(self, scaled: torch.Tensor, wanted: Wanted) -> torch.Tensor:
    """int64 [P], samples by Gumbel-max."""
    if not wanted.in_span:
      s = self.settings
      scaled = _nucleus(scaled, s.top_k, s.top_p, renormalise=not s.published)
    wait = torch.empty_like(scaled).exponential_(generator=wanted.generator)
    return (scaled - wait.log()).argmax(-1)

  def _scores(self, space, masked, total, log_p, confidence, token):
    """(scores, entropies), both [P]; entropies are 0 where the rule does not read them."""
    rule = self.settings.rule
    zeros = torch.zeros_like(confidence)
    if rule in ('confidence', 'threshold'):
      return confidence, zeros
    if rule == 'margin':
      best = masked.topk(2, dim=-1).values
      p = (best - total[:, None]).exp()
      return p[:, 0] - p[:, 1], zeros
    if rule == 'prior':
      return log_p - (zeros if self.prior is None else self.prior[token]), zeros
    p = (space - total[:, None]).exp()
    entropy = total - torch.where(p > 0, p * space, 0.0).sum(-1)
    return -entropy, entropy


def _nucleus(scaled: torch.Tensor, top_k: int, top_p: float, renormalise: bool) -> torch.Tensor:
  """-inf outside the top_k ids (0 = all), and of those the fewest with a sum of top_p: of their own
  probability, or without ``renormalise`` of that of all ids."""
  if not top_k and top_p >= 1:
    return scaled
  descending = scaled.sort(dim=-1, descending=True).values
  keep = torch.ones_like(descending, dtype=torch.bool)
  if top_k:
    keep[:, top_k:] = False
  p = (descending.masked_fill(~keep, -torch.inf) if renormalise else descending).softmax(-1)
  keep &= p.cumsum(-1) - p < top_p
  floor = descending.masked_fill(~keep, torch.inf).min(-1, keepdim=True).values
  return scaled.masked_fill(scaled < floor, -torch.inf)


# -- which masks a step commits --------------------------------------------------------------


def scheduled(settings: Options, size: int, masked: int, step: int) -> int:
  """How many positions a step commits at least.

  Linear: size // steps, and one more in each of the first size % steps steps. Shifted: the
  fraction done after step j of K is a u / (1 + (a - 1) u), u = (j + 1) / K; at least one
  position per step, and all that are left in the last.

  Args:
    settings: steps, schedule, shift.
    size: masks that the block began with.
    masked: masks that are left.
    step: steps that were made.
  """
  steps, shift = settings.steps, settings.shift
  if settings.schedule == 'linear' or shift == 1.0:
    return max(size // steps + (step < size % steps), 1)
  if step + 1 >= steps:
    return max(masked, 1)
  a, u = torch.tensor(shift), torch.tensor((step + 1) / steps)  # float32, as in ttt_jax
  return max(int((size * (a * u / (1 + (a - 1) * u))).round()) - (size - masked), 1)


def accept(settings: Options, choice: Choice, size: int, step: int) -> list[int]:
  """Indices, into the P masked positions, that this step commits: at least one.

  Positions are ranked by score, highest first, ties from left to right.
  """
  masked = len(choice.token)
  order = sorted(range(masked), key=lambda i: (-choice.score[i], i))
  count = scheduled(settings, size, masked, step)
  taken, spent = [], 0.0
  for place, i in enumerate(order):
    confident = settings.rule == 'threshold' and choice.confidence[i] >= settings.threshold
    in_budget = settings.rule == 'entropy' and spent <= settings.entropy_budget
    if place < count or confident or in_budget:
      taken.append(i)
    spent += choice.entropy[i]
  return taken
