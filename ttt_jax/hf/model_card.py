"""The model card of an export: model, data, training, losses, and how to load it."""

import math
import pathlib
from typing import Any

from ttt_jax.config import to_dict
from ttt_jax.data import store
from ttt_jax.hf.import_hf import IMPORT, ORIGIN, ReportFile
from ttt_jax.storage import schema
from ttt_jax.system.version import git_revision, version
from ttt_jax.train import metrics
from ttt_jax.train.trained_model import TrainedModel

_LOSSES = ('loss', 'ar', 'diffusion', 'text_nll', 'masked_nll')

_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained('{name}', trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained('{name}')
turns = [{{'role': 'user', 'content': 'Hello!'}}]
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
answer = model.generate_speech(ids, tokenizer=tokenizer{codec})
print(answer.text, answer.codes)
answer.write_wav('answer.wav')
```

`model(input_ids)` gives logits under the hybrid mask, `model.generate_speech(...)` text, audio
codes and `answer.waveform`; `modeling_ttt.py` needs nothing but torch, numpy and transformers.
{speech}
The weights have the names and shapes of Qwen2. With `dtype=torch.bfloat16` logits are rounded to 8
bits, so greedy answers can differ from those in float32, on a CPU as on a GPU.
"""

_CODEC = """The directory carries its codec, {name}{package}."""
_NO_CODEC = """Its codec, {name}, is not part of the directory: `decoder` is yours, an object with
`sample_rate` in Hz and `decode(codes) -> samples` in [-1, 1]; without it an answer has its codes
alone."""

_USE_ADAPTER = """\
```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, '{name}')
```

The base is what `ttt-jax export-hf --part base` writes."""


def imported(workdir: pathlib.Path, step: int) -> dict[str, Any]:
  """The import report of a run if ``step`` is the imported checkpoint; else {}."""
  return schema.read(workdir / ORIGIN / IMPORT, ReportFile, 'import into another workdir again',
                     optional=True) if step == 0 else {}


def facts(run: TrainedModel, workdir: pathlib.Path, part: str) -> dict[str, Any]:
  """The contents of training.json, without the numbers of the tensors."""
  config = run.config
  splits = store.read_manifest(run.data_dir)['splits']
  return {
      'name': config.name, 'part': part, 'step': run.step, 'steps': config.train.steps,
      # The name alone: a path of the user's machine does not belong into a published file.
      'base': pathlib.Path(imported(workdir, 0).get('directory', '')).name,
      'vocabulary': run.vocab.to_dict(), 'vocab_size': run.vocab.size,
      'fingerprint': run.vocab.fingerprint, 'data': splits,
      'losses': _losses(workdir / 'metrics.jsonl', run.step), 'config': to_dict(config),
      'version': version(), 'revision': git_revision()}


def _losses(path: pathlib.Path, step: int) -> dict[str, float]:
  """The last logged losses up to a step."""
  found: dict[str, float] = {}
  for values in metrics.read(path) if path.is_file() else ():
    if values['step'] <= step and 'loss' in values:
      found = {name: values[name] for name in _LOSSES
               if math.isfinite(values.get(name, math.nan))}
  return found


def text(known: dict[str, Any]) -> str:
  """README.md, from the contents of training.json."""
  config = known['config']
  adapter = known['part'] == 'adapter'
  rows = [
      ('base', known['base'] or 'random parameters'),
      ('training', f'{known["step"]:,} of {known["steps"]:,} steps, '
                   f'{config["train"]["batch_size"]} rows of '
                   f'{config["data"]["seq_len"]} tokens'),
      ('objective', f'{config["objective"]["mode"]}, mask floor '
                    f'{config["objective"]["mask_floor"]}'),
      ('optimizer', f'{config["optimizer"]["name"]}, learning rate '
                    f'{config["optimizer"]["learning_rate"]}'),
      ('data', ', '.join(f'{name}: {_counts(split)}' for name, split in known['data'].items())),
      *((f'last {name}', f'{value:.4f}') for name, value in known['losses'].items()),
      ('vocabulary', f'{known["vocab_size"]:,} ids ({known["vocabulary"]["text"]} and '
                     f'{known["vocabulary"]["codec"]}), fingerprint {known["fingerprint"]}'),
      ('parameters', f'{known["parameters"]:,} in {known["tensors"]} tensors, {known["dtype"]}'),
      ('made by', f'ttt_jax {known["version"]} {known["revision"]}'.strip()),
  ]
  if config['model']['lora']['rank']:
    lora = config['model']['lora']
    rows.insert(1, ('adapters', f'{known["part"]}; rank {lora["rank"]}, alpha {lora["alpha"]}, on '
                                + ', '.join(lora['targets'])))
  table = '\n'.join(f'| {name} | {value} |' for name, value in rows)
  kind = 'A LoRA adapter for a' if adapter else 'A'
  codec = known['vocabulary']['codec']
  package = ' (its decoder is the package pycodec2)' if codec.startswith('codec2-') else ''
  use = (_USE_ADAPTER if adapter else _USE).format(
      name=known['name'], codec='' if known.get('codec') else ', codec=decoder',
      speech=(_CODEC if known.get('codec') else _NO_CODEC).format(name=codec, package=package)
  ).rstrip()
  head = '---\nlibrary_name: ' + ('peft' if adapter else 'transformers') + '\n---\n'
  return (f'{head}# {known["name"]}\n\n{kind} Text-to-Talk model: one Transformer that generates '
          'text token by token and audio block by block by diffusion (arXiv 2509.20072).\n\n'
          f'| | |\n|---|---|\n{table}\n\n{use}\n')


def _counts(split: dict[str, Any]) -> str:
  return ', '.join(f'{value:,} {name}' for name, value in split.items()
                   if isinstance(value, int) and not isinstance(value, bool))
