#!/usr/bin/env bash
# From a fresh clone to a trained student: ./run_pipeline.sh [CONFIG.yaml] [key=value]...
# Makes .venv (once), then runs every stage of the config (default: configs/quickstart.yaml) that is not done.
# ./run_pipeline.sh --setup-only stops after .venv. PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
export MINICODFORMER_COMMAND="$0${*:+ $*}"
cd "$(dirname "${BASH_SOURCE[0]}")"

python=""
for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python3.14; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then break; fi
    fi
done
if [ -z "$python" ]; then
    echo "error: Python 3.11 or newer is needed, found $(python3 --version 2>&1 || echo none);" \
        "install one (apt-get install python3.11 python3.11-venv; brew install python@3.13) or name it: PYTHON=/path/to/python $0" >&2
    exit 2
fi

"$python" -I pipeline/bootstrap.py
if [ "${1:-}" = "--setup-only" ]; then exit 0; fi
exec .venv/bin/python -m pipeline run "$@"
