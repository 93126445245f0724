"""Settings: frozen dataclasses, read from a Python config file and dotted overrides.

A file under configs/ has only what differs from the defaults in settings.py. ``load`` applies its
hardware preset and the command line's overrides. An unknown key or a wrong type is a UserError
that suggests the right one.
"""

from ttt_jax.config.files import (
    RENAMED, call, check_saved, flat, from_dict, load, of_values, presets, save, to_dict,
    upgraded)
from ttt_jax.config.settings import (
    CodecConfig, Config, DataConfig, EvaluateConfig, GenerateConfig, LoraConfig, MeshConfig,
    ModelConfig, ObjectiveConfig, OptimizerConfig, ScoreConfig, ServeConfig, Source, Stage,
    TrainConfig, VocabConfig, preset_values, with_preset)

__all__ = [
    'RENAMED', 'CodecConfig', 'Config', 'DataConfig', 'EvaluateConfig', 'GenerateConfig',
    'LoraConfig', 'MeshConfig', 'ModelConfig', 'ObjectiveConfig', 'OptimizerConfig', 'ScoreConfig',
    'ServeConfig', 'Source', 'Stage', 'TrainConfig', 'VocabConfig', 'call', 'check_saved', 'flat',
    'from_dict', 'load', 'of_values', 'preset_values', 'presets', 'save', 'to_dict', 'upgraded',
    'with_preset',
]
