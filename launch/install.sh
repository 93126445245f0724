#!/usr/bin/env bash
# Creates .venv and installs this checkout into it: bash launch/install.sh demo|test|torch
# Needs Python 3.11 or newer (PYTHON=... selects one), no root and no other program.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=$1

if ! .venv/bin/python -c '' 2>/dev/null; then
  python=
  for name in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$name
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "make: this needs Python 3.11 or newer; set PYTHON=/path/to/python3.11." >&2
    exit 1
  fi
  "$python" -m venv --clear .venv || {
    echo "make: $python cannot create a virtual environment; on Debian and Ubuntu install" \
         "python3-venv, or set PYTHON to another Python." >&2
    exit 1
  }
fi

install() {
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

echo "Installing packages into .venv, once (a few minutes)."
if install -c constraints.txt -e ".[$extra]"; then
  exit 0
fi
echo "Some versions of constraints.txt (for Python 3.11) are not available here; installing the" \
     "newest versions instead." >&2
if install -e ".[$extra]"; then
  exit 0
fi
if [ "$extra" = demo ]; then
  echo "Some speech packages are not available here; installing the others." >&2
  install -e .
  .venv/bin/python - <<'PYTHON' | while read -r package; do
import importlib.metadata
for line in importlib.metadata.requires('ttt_jax'):
  if 'extra == "demo"' in line.replace("'", '"'):
    print(line.split(';')[0].replace(' ', ''))
PYTHON
    install "$package" </dev/null || echo "  without $package" >&2
  done
  exit 0
fi
exit 1
