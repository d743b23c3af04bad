#!/usr/bin/env bash
# Everything that CI checks: style, then tests.
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh requirements.txt tests/requirements.txt
ruff check .
ruff format --check .
lint-imports --no-cache
python3 -m pytest -q "$@"
