"""Other people's formats: Hugging Face directories in and out, and PEFT adapters.

  layout      ONE table: tensor name of Qwen2 <-> path of our parameter
  tensors     safetensors files: read tensor by tensor, written in shards with an index
  qwen        config.json <-> ModelConfig and Vocabulary
  import_hf   a directory -> parameters on the mesh -> an initial checkpoint
  export_hf   a checkpoint -> a directory that transformers loads
  peft        LoRA adapters in the format of the package `peft`
  torch_code  what an exported directory carries to run in PyTorch; nothing here imports it
"""
