"""Settings: frozen dataclasses, read from a Python config file and dotted overrides.

A file under configs/ has only what differs from the defaults in settings.py. ``load`` applies its
hardware preset and the command line's overrides. An unknown key or a wrong type is a UserError
that suggests the right one.
"""

from ttt_jax.config.files import (
    RENAMED, call, check_saved, flat, from_dict, load, presets, save, to_dict, upgraded)
from ttt_jax.config.settings import (
    CodecConfig, Config, DataConfig, EvaluateConfig, GenerateConfig, LoraConfig, MeshConfig,
    ModelConfig, ObjectiveConfig, OptimizerConfig, ScoreConfig, Source, Stage, TrainConfig,
    VocabConfig, preset_values, with_preset)

__all__ = [
    'RENAMED', 'CodecConfig', 'Config', 'DataConfig', 'EvaluateConfig', 'GenerateConfig',
    'LoraConfig', 'MeshConfig', 'ModelConfig', 'ObjectiveConfig', 'OptimizerConfig', 'ScoreConfig',
    'Source', 'Stage', 'TrainConfig', 'VocabConfig', 'call', 'check_saved', 'flat', 'from_dict',
    'load', 'preset_values', 'presets', 'save', 'to_dict', 'upgraded', 'with_preset',
]
