"""ONNX models and other judges' files on disk: opened without network access and telemetry."""

import glob
import os
import pathlib
from typing import Any

from ttt_jax.errors import UserError
from ttt_jax.storage import files, folder_copies, remote


def local_only() -> None:
  """Nothing is downloaded and no telemetry is sent: to be called before onnxruntime,
  huggingface_hub, or a package that imports them, is imported; they read both at import."""
  os.environ.update(ORT_DISABLE_TELEMETRY='1', HF_HUB_OFFLINE='1')


def threads() -> int:
  """Threads of a judge: up to 4, unless OMP_NUM_THREADS says how many."""
  chosen = os.environ.get('OMP_NUM_THREADS', '')
  return int(chosen) if chosen.isdigit() and int(chosen) else min(4, os.cpu_count() or 1)


def file(path: str, key: str, *beside: str) -> pathlib.Path:
  """The file on the disk of a model that may be in a bucket; a copy keeps its name.

  Args:
    path: of the file, which need not exist, or its URL.
    key: what names it, for sentences.
    beside: names of other files that are read if they are there.

  Raises:
    UserError, RetryableError: as folder_copies.folder.
  """
  if not remote.is_url(path):
    return pathlib.Path(path)
  name = remote.name(path)
  return folder_copies.folder(remote.parent(path), (glob.escape(name), *beside), key) / name


def session(path: pathlib.Path, what: str) -> Any:
  """An onnxruntime.InferenceSession of the model at ``path`` on the CPU.

  Args:
    path: of the .onnx file.
    what: the model's part in error messages, such as 'the DNSMOS model'.

  Raises:
    UserError: onnxruntime is not installed, or the file is not an ONNX model.
  """
  local_only()
  try:
    import onnxruntime
  except ImportError as error:
    raise UserError(f'{what} {path} needs the package onnxruntime (extra \'judges\').') from error
  if not path.is_file():
    raise UserError(f'{what} {path} is not a file; expected an ONNX model.')
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads, options.inter_op_num_threads = threads(), 1
  options.log_severity_level = 3  # errors
  # Waiting threads sleep: others may need the cores.
  options.add_session_config_entry('session.intra_op.allow_spinning', '0')
  try:
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
  except Exception as error:  # its exceptions have no common base class
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(f'{what} {path} cannot be read as an ONNX model: {reason}.') from error


def facts(*paths: pathlib.Path) -> dict[str, dict[str, Any]]:
  """File name -> {'bytes', 'sha256'}: which model it was that gave a number."""
  return {path.name: {'bytes': path.stat().st_size, 'sha256': files.sha256(path)}
          for path in paths}
