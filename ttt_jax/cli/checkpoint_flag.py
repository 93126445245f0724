"""The flag of the commands that read a trained model."""

import argparse


def add_checkpoint(sub: argparse.ArgumentParser) -> None:
  """Add --checkpoint STEP."""
  sub.add_argument('--checkpoint', type=int, metavar='STEP',
                   help='step of a checkpoint in WORKDIR/checkpoints (default: the newest)')
