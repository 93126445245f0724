"""The machine this process runs on, for reports of measurements."""

import os
import platform
import re


def cpu_count() -> int:
  """CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def describe() -> str:
  """CPU, cores and memory, such as '2 cores of Intel(R) Xeon(R) CPU @ 2.20GHz, 23 GiB'."""
  name = platform.processor() or platform.machine()
  try:
    with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
      found = re.search(r'^model name\s*:\s*(.+)$', file.read(), re.M)
    name = ' '.join(found[1].split()) if found else name
  except OSError:
    pass  # not Linux
  count = cpu_count()
  text = f'{count} core{"s" if count > 1 else ""} of {name}'
  try:
    size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return f'{text}, {size / 2**30:.0f} GiB'
  except (AttributeError, ValueError, OSError):
    return text
