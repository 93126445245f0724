"""Files and formats without knowledge of models: atomic writes, locks, safetensors."""
