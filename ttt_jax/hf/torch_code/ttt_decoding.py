"""Generation: text token by token, audio block by block, with an exact KV cache of the prefix.

A request's *window* has the tokens that are not cached: in text the last token, or a closed span
after its begin token; in a span the begin token and the open span. Tokens before an open span
never attend to it, so their keys and values are final. The span is bidirectional, so it is
computed again at every step. Rows of several requests share a forward pass.

In the published loop (option preset) any id may stand anywhere, so the ids of the moment decide
what is bidirectional, and audio at the end of a row stays in the window until a text id follows.

Part of ttt_jax (Apache-2.0); this file needs only torch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .ttt_choice import Choice, Chooser, Ids, Options, Wanted, accept
from .ttt_layers import Decoder, Pair, bidirectional_group
from .ttt_outputs import Event, Reporter, Row, Span

_LONGEST = 512    # tokens of a prompt that are read at once, unless a span is longer
_POSITIONS = 128  # positions whose logits are in memory at once


class Generation:
  """Answers prompts under one set of options."""

  def __init__(self, decoder: Decoder, head: torch.Tensor, ids: Ids, settings: Options, *,
               mode: str = 'hybrid', prompt_audio: str = 'bidirectional',
               decode: Callable[[list[int]], str] | None = None):
    """Args:
      decoder, head: the model; head is [V', E].
      ids, settings: see ttt_choice.py.
      mode, prompt_audio: see ttt_layers.bidirectional_group.
      decode: text ids to text, for events and answers that carry text.
    """
    self.decoder, self.ids, self.settings, self.mode = decoder, ids, settings, mode
    self.prompt_audio, self._reporter = prompt_audio, Reporter(ids, decode)
    self.device = head.device
    self.choose = Chooser(head, ids, mode, settings)
    self._guided = settings.guidance > 0 and mode != 'ar'
    if settings.published and mode != 'hybrid':
      raise ValueError(f"preset 'published' decodes mode 'hybrid', but this model has mode "
                       f"{mode!r}; use preset='default'.")
    self._rows: list[Row] = []
    self._cache: list[Pair] = []

  def run(self, prompts: Sequence[list[int]], names: Sequence[int] | None = None
          ) -> Iterator[Event]:
    """Answer every prompt, and yield events as they happen.

    Args:
      prompts: ids up to and including the assistant's header.
      names: seed the requests' random draws together with ``settings.seed``; None: indices.

    Raises:
      ValueError: a prompt that is empty, too long, or has an id outside the vocabulary.
    """
    for number, prompt in enumerate(prompts):
      self._check(prompt, f'prompt {number + 1}')
    slots = min(self.settings.slots, len(prompts))
    self._cache = self._empty(slots)
    if self.settings.rule == 'prior':
      self.choose.prior = self._prior()
    waiting = list(enumerate(prompts))
    free = list(range(slots))
    while waiting or self._rows:
      while waiting and free:
        number, prompt = waiting.pop(0)
        self._admit(number, free.pop(0), list(prompt), names[number] if names else number)
      for group in self._groups():
        self._step(group)
      for row in self._rows:
        yield from self._reporter.events_of(row)
      free += [row.slot for row in self._rows if row.done]
      self._rows = [row for row in self._rows if not row.done]

  def _check(self, prompt: list[int], where: str) -> None:
    if not prompt:
      raise ValueError(f'{where} is empty; a request needs at least one token.')
    bad = [token for token in prompt if not 0 <= token < self.ids.size]
    if bad:
      raise ValueError(f'{where} holds id {bad[0]}, outside the vocabulary '
                       f'(0..{self.ids.size - 1}).')
    if self.mode == 'nar' and self.prompt_audio != 'causal' and prompt[-1] >= self.ids.threshold:
      raise ValueError(f"{where} ends in audio; in mode 'nar' a prompt must end in text.")
    if len(prompt) >= self.settings.max_tokens:
      raise ValueError(f'{where} has {len(prompt)} tokens; max_tokens={self.settings.max_tokens} '
                       'leaves no room for an answer.')

  # -- cache and prompt -----------------------------------------------------------------------

  def _empty(self, slots: int) -> list[Pair]:
    size = self.decoder.size
    shape = (slots, self.settings.max_tokens, size.num_key_value_heads, size.head_dim)
    like = self.decoder.embed_tokens.weight
    zeros = lambda: torch.zeros(shape, dtype=like.dtype, device=like.device)
    return [(zeros(), zeros()) for _ in range(size.num_layers)]

  @torch.no_grad()
  def _admit(self, number: int, slot: int, prompt: list[int], name: int) -> None:
    """Cache a prompt without its last token, or without its last bidirectional group."""
    token = torch.tensor([prompt])
    one = torch.ones_like(token)
    group = bidirectional_group(token >= self.ids.threshold, one, one < 0, self.mode,
                                self.prompt_audio)[0].tolist()
    tail = len(prompt) - 1
    while tail and group[tail] and group[tail - 1] == group[tail]:
      tail -= 1
    generator = torch.Generator(self.device).manual_seed(self.settings.seed * 1_000_003 + name)
    row = Row(number, slot, prompt, len(prompt), generator, seen=len(prompt))
    while row.known < tail:
      stop = _piece_end(group, row.known, tail)
      ends = _piece_ends(group, row.known, stop)
      _, made = self._extend([row], [prompt[row.known:stop]], [ends])
      self._write([row], [row.known], [stop - row.known], made)
      row.known = stop
    row.lead = len(prompt) - tail
    if self.mode == 'nar':
      row.known, row.lead = len(prompt) - 1, 1
      self._open(row)
    self._rows.append(row)

  def _extend(self, rows: list[Row], tokens: list[list[int]], ends: list[list[int]],
              cached: bool = True) -> tuple[torch.Tensor, list[Pair]]:
    """Hidden states [B, W, E], and keys and values, of windows that follow the cached tokens.

    Args:
      rows: B requests.
      tokens: each row's window, at most W tokens.
      ends: token i of a window attends to the window's tokens 0 .. ends[i]-1.
      cached: whether the windows attend to the cache.
    """
    width = max(map(len, tokens))
    pad = lambda values, fill: torch.tensor(
        [[*x, *[fill] * (width - len(x))] for x in values], device=self.device)
    known = torch.tensor([row.known for row in rows], device=self.device)
    index = torch.arange(width, device=self.device)
    # Padding attends to the window's first token: a query without keys would give NaN.
    allowed = index < pad(ends, 1)[:, :, None]
    longest = max(row.known for row in rows) if cached else 0
    prefix = None
    if longest:
      before = torch.arange(longest, device=self.device) < known[:, None]
      allowed = torch.cat([before[:, None].expand(-1, width, -1), allowed], dim=2)
      prefix = [(self._take(k, rows, longest), self._take(v, rows, longest))
                for k, v in self._cache]
    return self.decoder(pad(tokens, 0), known[:, None] + index, allowed, prefix)

  def _take(self, x: torch.Tensor, rows: list[Row], longest: int) -> torch.Tensor:
    slots = [row.slot for row in rows]
    part = x[:, :longest]
    return part if slots == list(range(x.shape[0])) else part[slots]

  def _write(self, rows: list[Row], starts: list[int], counts: list[int], made: list) -> None:
    """Cache the first ``counts`` tokens of each row's window, which began at ``starts``."""
    place = [(i, row.slot, start + j, j)
             for i, (row, start, count) in enumerate(zip(rows, starts, counts))
             for j in range(count)]
    if not place:
      return
    row, slot, at, offset = (torch.tensor(x, device=self.device) for x in zip(*place))
    for (k, v), (new_k, new_v) in zip(self._cache, made):
      k[slot, at], v[slot, at] = new_k[row, offset], new_v[row, offset]

  # -- steps ----------------------------------------------------------------------------------

  def _groups(self) -> list[list[Row]]:
    """Rows that share a forward pass. On a CPU single tokens are not padded to wide windows."""
    rows = [row for row in self._rows if not row.done]
    if self.device.type != 'cpu':
      return [rows] if rows else []
    groups = [[row for row in rows if row.size == 1], [row for row in rows if row.size > 1]]
    return [group for group in groups if group]

  @torch.no_grad()
  def _step(self, rows: list[Row]) -> None:
    """One decode step of some rows: a forward pass, then the choices of each row."""
    tokens = [row.token[row.known:] for row in rows]
    ends = [self._ends(row) for row in rows]
    hidden, made = self._extend(rows, tokens, ends)
    uncond = self._unconditional(rows, tokens, ends)
    starts, counts = [row.known for row in rows], [0] * len(rows)
    for i, row in enumerate(rows):
      row.calls += 1
      if row.open:
        self._span(row, hidden[i], uncond.get(i))
      else:
        self._text(row, hidden[i, row.size - 1])
        counts[i] = row.known - starts[i]  # the tokens that are final now
    self._write(rows, starts, counts, made)

  def _ends(self, row: Row) -> list[int]:
    """Token i of the row's window attends to the window's tokens 0 .. result[i]-1."""
    if not self.settings.published:
      return [row.lead if i < row.lead else row.size for i in range(row.size)]
    return _run_ends([self._in_run(row, i) for i in range(row.known, len(row.token))])

  def _in_run(self, row: Row, at: int) -> bool:
    """Whether a token attends to the audio around it."""
    return row.token[at] >= self.ids.threshold and (
        at >= row.prompt or self.prompt_audio == 'bidirectional')

  def _unconditional(self, rows: list[Row], tokens: list[list[int]],
                     ends: list[list[int]]) -> dict[int, torch.Tensor]:
    """{index of a guided row: hidden states [W, E] of its window in the unconditional pass}.

    guidance_context 'published': every id up to the begin token becomes a mask; with preset
    'published' every id before the open block. Masks are audio, so prefix and span are one
    bidirectional run. 'begin': the window alone, with the begin token at its true position.
    """
    chosen = [i for i, row in enumerate(rows) if row.open] if self._guided else []
    if not chosen:
      return {}
    some = [rows[i] for i in chosen]
    if self.settings.guidance_context == 'begin':
      hidden, _ = self._extend(some, [tokens[i] for i in chosen], [ends[i] for i in chosen],
                               cached=False)
      return dict(zip(chosen, hidden))
    out = {}
    for i, row in zip(chosen, some):
      first = row.block_at if self.settings.published else row.begin + 1
      ids = [self.ids.mask] * first + row.token[first:]
      token = torch.tensor([ids], device=self.device)
      index = torch.arange(len(ids), device=self.device)
      stops = [len(ids)] * len(ids)
      if self.settings.published:  # a text id in the block ends the run
        stops = _run_ends([x >= self.ids.threshold for x in ids])
      allowed = index < torch.tensor(stops, device=self.device)[:, None]
      out[i] = self.decoder(token, index[None], allowed[None])[0][0, row.known:]
    return out

  def _text(self, row: Row, hidden: torch.Tensor) -> None:
    """Append one text token; its hidden state is that of the window's last token."""
    limited = torch.tensor([row.gap < self.settings.text_gap], device=self.device)
    chosen = self.choose(Wanted(hidden[None], None, False, limited, row.generator)).token[0]
    if not self.settings.published or chosen < self.ids.threshold:
      row.known = len(row.token)
    else:  # an audio id belongs to the run before it, which is not final then
      row.known += next((i + 1 for i in reversed(range(row.size))
                         if not self._in_run(row, row.known + i)), 0)
    row.lead = 1
    row.token.append(chosen)
    row.gap += 1
    row.finished = chosen == self.ids.im_end
    full = len(row.token) >= self.settings.max_tokens
    row.done = row.finished or full
    if self.mode == 'hybrid' and self.ids.is_begin(chosen) and not full:
      self._open(row)

  def _open(self, row: Row) -> None:
    """The last token opens a span."""
    row.open, row.begin, row.known, row.lead = True, len(row.token) - 1, len(row.token) - 1, 1
    row.blocks = 0
    self._grow(row)

  def _grow(self, row: Row) -> None:
    """Append a block of masks; or the end token, where no mask fits beside it. The published loop
    looks at max_tokens only after as many blocks as max_span has, and forces no end."""
    if self.settings.published:
      block = self.settings.block
      if row.blocks and row.blocks % -(-self.settings.max_span // block) == 0 and (
          len(row.token) >= self.settings.max_tokens):
        self._close(row, False)
      else:
        self._append_block(row, block)
      return
    nar = self.mode == 'nar'
    room = self.settings.max_tokens - len(row.token)
    limit = room if nar else self.settings.max_span - (len(row.token) - row.begin - 1)
    masks = min(self.settings.block, min(limit, room) - 1)
    if masks >= 1:
      self._append_block(row, masks)
      return
    begun = row.token[row.begin] == self.ids.begin_of_audio
    end = self.ids.end_of_chunk if begun else self.ids.end_of_last
    row.token.append(self.ids.im_end if nar else end)
    self._close(row, False)

  def _append_block(self, row: Row, masks: int) -> None:
    row.block_at, row.block, row.step = len(row.token), masks, 0
    row.blocks += 1
    row.token += [self.ids.mask] * masks

  def _span(self, row: Row, hidden: torch.Tensor, uncond: torch.Tensor | None) -> None:
    """Commit some masks of the block."""
    at = [i for i in range(row.block_at, len(row.token)) if row.token[i] == self.ids.mask]
    choice = Choice([], [], [], [])
    for first in range(0, len(at), _POSITIONS):
      part = at[first:first + _POSITIONS]
      window = torch.tensor(part, device=self.device) - row.known
      limited = torch.tensor([i - row.begin < self.settings.min_span for i in part],
                             device=self.device)
      more = self.choose(Wanted(hidden[window], None if uncond is None else uncond[window], True,
                                limited, row.generator))
      choice = Choice(choice.token + more.token, choice.confidence + more.confidence,
                      choice.score + more.score, choice.entropy + more.entropy)
    for i in accept(self.settings, choice, row.block, row.step):
      row.token[at[i]] = choice.token[i]
    row.step += 1
    is_end = (lambda x: x == self.ids.im_end) if self.mode == 'nar' else self.ids.is_end
    # A mask that the published loop chose stays one, so there a block ends after its last step.
    last = self.settings.published and row.step >= min(self.settings.steps, row.block)
    for i in range(row.block_at, len(row.token)):
      if row.token[i] == self.ids.mask and not last:
        return
      if is_end(row.token[i]):
        del row.token[i + 1:]
        self._close(row, True)
        return
    self._grow(row)

  def _close(self, row: Row, ended: bool) -> None:
    """Close the span after its end token; the next text step caches it, if there is one."""
    start = row.begin + 1
    row.spans.append(Span(start - row.prompt, len(row.token) - start, ended, row.blocks))
    row.open, row.gap = False, 0
    if self.mode == 'nar':
      row.finished, row.done = ended, True
    row.done |= len(row.token) >= self.settings.max_tokens

  @torch.no_grad()
  def _prior(self) -> Any:
    """float32 [V], log of the mean distribution over a first block with no prefix but its begin
    token."""
    block = self.settings.block
    token = torch.tensor([[self.ids.begin_of_audio, *[self.ids.mask] * block]],
                         device=self.device)
    position = torch.arange(1 + block, device=self.device)
    end = torch.where(position == 0, 1, 1 + block)
    hidden, _ = self.decoder(token, position[None], (position < end[:, None])[None])
    p = self.choose.logits(hidden[0, 1:]).softmax(-1).mean(0)
    return p.clamp_min(1e-8).log()


def _piece_end(group: list[int], at: int, end: int) -> int:
  """End of a piece of a prompt that starts at ``at``: never inside a bidirectional group."""
  inside = lambda i: bool(group[i]) and group[i - 1] == group[i]
  stop = min(end, at + _LONGEST)
  back = stop
  while at < back < end and inside(back):
    back -= 1
  if back > at:
    return back
  while stop < end and inside(stop):
    stop += 1
  return stop


def _run_ends(member: list[bool]) -> list[int]:
  """Token i attends to tokens 0 .. result[i]-1: a member to the end of its run of members, another
  token to itself."""
  ends, last = [0] * len(member), len(member)
  for i in reversed(range(len(member))):
    if not member[i]:
      last = i
    ends[i] = last if member[i] else i + 1
  return ends


def _piece_ends(group: list[int], at: int, stop: int) -> list[int]:
  """Token i of the piece attends to the piece's tokens 0 .. result[i]-1."""
  ends, last = [0] * (stop - at), stop - at
  for i in range(stop - 1, at - 1, -1):
    if i + 1 < stop and group[i + 1] != group[i]:
      last = i + 1 - at
    ends[i - at] = last if group[i] else i + 1 - at
  return ends
