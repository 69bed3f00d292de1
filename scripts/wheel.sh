#!/usr/bin/env bash
# Builds the sdist, and from it the wheel that needs no compiler: libjpeg-turbo is inside. `make wheel` runs it.
#
#   PYTHON=.venv/bin/python bash scripts/wheel.sh [FOLDER]
#
# Both go to FOLDER, else to dist. The Python has the packages of requirements.txt. The wheel is for Python 3.10
# and newer on Linux for x86-64 with glibc 2.28 or newer, the systems of PyTorch's own wheels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
folder=${1:-dist}
bin=$(cd "$(dirname "$(command -v "$python")")" && pwd)
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT

quietly() { "$@" > "$built/log" 2>&1 || { cat "$built/log" >&2; exit 1; }; }

quietly "$python" -m build --no-isolation --outdir "$built" .
# Fails if the library needs a symbol that those systems lack. patchelf must be on the PATH.
PATH="$bin:$PATH" quietly "$python" -m auditwheel repair --only-plat --plat manylinux_2_28_x86_64 \
    --wheel-dir "$built/repaired" "$built"/llcodes-*.whl
mkdir -p "$folder"
rm -f "$folder"/llcodes-*
mv "$built"/repaired/llcodes-*.whl "$built"/llcodes-*.tar.gz "$folder"
ls "$folder"/llcodes-*
