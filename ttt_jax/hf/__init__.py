"""Hugging Face directories in and out, and PEFT adapters.

  tensor_names  ONE table: tensor name of Qwen2 <-> path of our parameter
  qwen_config   config.json <-> ModelConfig and Vocabulary
  import_hf     a directory -> parameters on the mesh -> an initial checkpoint
  export_hf     a checkpoint -> a directory that transformers loads
  peft          LoRA adapters in the format of the package `peft`
  model_card    README.md and training.json of an export
  torch_code    the PyTorch code that an exported directory contains; nothing here imports it
"""
