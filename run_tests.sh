#!/usr/bin/env bash
# Everything that CI checks: style, then tests.
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh requirements.txt tests/requirements.txt
ruff check .
ruff format --check .
lint-imports --no-cache
export OMP_NUM_THREADS=1  # two workers of one thread each: more threads would wait for each other
python3 -m pytest -q -n 2 --dist loadfile "$@"
