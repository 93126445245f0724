"""Codes to waveforms with the published PyTorch decoder, which is imported only if configured.

The decoder of GLM-4-Voice (flow matching and a vocoder, 22,050 Hz) is not ported. With a checkout
of github.com/THUDM/GLM-4-Voice, its requirements and the folder of its weights, use:

  export PYTHONPATH=GLM-4-Voice:GLM-4-Voice/cosyvoice:GLM-4-Voice/third_party/Matcha-TTS
  ttt-jax ... --config.codec.decoder=flow_inference:AudioDecoder \\
              --config.codec.decoder_weights=glm-4-voice-decoder

Any class with this interface works: CLASS(config_path, flow_ckpt_path, hift_ckpt_path,
device) with offline_inference(tokens [1, n]) -> waveform [1, m].
"""

import importlib
from typing import Any

import numpy as np

from ttt_jax.config import user_classes
from ttt_jax.errors import UserError
from ttt_jax.storage import folder_copies

RATE = 22_050
FILES = ('config.yaml', 'flow.pt', 'hift.pt')


class Bridge:
  """A PyTorch decoder by name; created at the first call."""

  def __init__(self, name: str, weights: str):
    """
    Args:
      name: 'module:Class', as importlib finds it.
      weights: folder with FILES.

    Raises:
      UserError: a malformed name, or a missing file.
    """
    if name.count(':') != 1 or not all(name.split(':')):
      raise UserError(f'config key codec.decoder is {name!r}; use "module:Class", like '
                      '"flow_inference:AudioDecoder" of a GLM-4-Voice checkout on PYTHONPATH.')
    self.name, self.weights = name, weights
    self.folder = folder_copies.folder(weights, FILES, 'config key codec.decoder_weights')
    missing = [file for file in FILES if not (self.folder / file).is_file()]
    if missing or not weights:
      raise UserError(f'config key codec.decoder_weights is {weights!r}, a folder without '
                      f'{missing[0] if missing else FILES[0]}; name the folder of the published '
                      f'decoder, with {", ".join(FILES)}.')
    self._decoder: Any = None

  def __call__(self, codes: np.ndarray) -> np.ndarray:
    """int [n], n >= 1 -> float32 [m] at RATE.

    Raises:
      UserError: PyTorch, the module or one of its requirements is not installed, or the user did
        not name the class.
    """
    user_classes.check(self.name, 'config key codec.decoder', 'codec.decoder')
    try:
      import torch  # pyright: ignore[reportMissingImports]  optional, not a dependency
      if self._decoder is None:
        module, _, cls = self.name.partition(':')
        make = getattr(importlib.import_module(module), cls)
        folder = folder_copies.folder(self.weights, FILES)  # again: the cache may have lost it
        config, flow, vocoder = (str(folder / file) for file in FILES)
        self._decoder = make(config_path=config, flow_ckpt_path=flow, hift_ckpt_path=vocoder,
                             device='cuda' if torch.cuda.is_available() else 'cpu')
    except (ImportError, AttributeError) as error:
      raise UserError(f'config key codec.decoder is {str(self.name)!r}, which cannot be imported: '
                      f'{error}; it needs PyTorch and a GLM-4-Voice checkout with its requirements '
                      'on PYTHONPATH.') from error
    with torch.inference_mode():
      sound = self._decoder.offline_inference(torch.as_tensor(codes, dtype=torch.int64)[None])
    return sound.cpu().float().numpy().reshape(-1)
