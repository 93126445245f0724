"""The ranges of numbers among the settings, as types: ``num_layers: Count = 4``.

docs/config_reference.py prints the comment beside each of them.
"""

import dataclasses
import functools
import math
import typing
from typing import Annotated, Any

from ttt_jax.errors import UserError

LARGEST = 2**31 - 1  # of whole numbers: they become int32 on the device


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers from ``low`` to ``high``; an open end does not belong to them."""
  low: float
  high: float = math.inf
  open_low: bool = False
  open_high: bool = False

  def __contains__(self, value: float) -> bool:
    above = self.low < value if self.open_low else self.low <= value
    below = value < self.high if self.open_high else value <= self.high
    return above and below and math.isfinite(value)  # NaN is neither above nor below

  def explain(self, value: float) -> str:
    """What ``value`` must be, for a message."""
    low = f'above {self.low:g}' if self.open_low else f'at least {self.low:g}'
    if self.high == math.inf:
      return low if math.isfinite(value) else f'{low} and finite'
    if self.high == LARGEST and value < self.high:
      return low
    return (f'in {"(" if self.open_low else "["}{self.low:g}, {self.high:.16g}'
            f'{")" if self.open_high else "]"}')


Count = Annotated[int, Range(1, LARGEST)]     # at least 1
Natural = Annotated[int, Range(0, LARGEST)]   # at least 0
MeshSize = Annotated[int, Range(-1, LARGEST)]  # at least 1, or -1
Seed = Annotated[int, Range(0, 2**32 - 1)]    # in [0, 2**32 - 1]
NonNegative = Annotated[float, Range(0)]      # at least 0
Positive = Annotated[float, Range(0, open_low=True)]  # above 0
Factor = Annotated[float, Range(-1)]          # at least -1
Probability = Annotated[float, Range(0, 1)]   # in [0, 1]
Share = Annotated[float, Range(0, 1, open_high=True)]  # in [0, 1)
TopShare = Annotated[float, Range(0, 1, open_low=True)]  # in (0, 1]
OpenShare = Annotated[float, Range(0, 1, open_low=True, open_high=True)]  # in (0, 1)


class Settings:
  """Base of the groups of settings: checks the range of every number."""
  group = ''  # prefix of the keys; not annotated, since annotated names are settings

  def __init_subclass__(cls, group: str = '', **rest: Any):
    super().__init_subclass__(**rest)
    cls.group = group

  def __post_init__(self) -> None:
    for name, allowed in ranges(type(self)).items():
      value: Any = getattr(self, name)
      if not isinstance(value, (int, float)) or value not in allowed:
        key = f'{self.group}.{name}' if self.group else name
        raise UserError(f'config key {key} is {value}; it must be {allowed.explain(value)}.')


@functools.cache
def ranges(cls: type) -> dict[str, Range]:
  """Field -> range of the numbers of a group of settings."""
  hints = typing.get_type_hints(cls, include_extras=True)
  return {name: part for name, hint in hints.items()
          for part in getattr(hint, '__metadata__', ()) if isinstance(part, Range)}
