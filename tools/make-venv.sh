#!/bin/sh
# Makes a virtual environment from a hashed lock file; called by the Makefile.
# usage: make-venv.sh [--alone] DIRECTORY LOCK
# --alone: without kiseki itself, for tools whose requirements would not fit with its own.
set -eu
alone=
if [ "$1" = --alone ]; then
    alone=yes
    shift
fi
venv=$1
lock=$2

fail() {
    echo "kiseki: $1" >&2
    exit 1
}

usable() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

python=
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && usable "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    found=$(python3 --version 2>/dev/null || echo "no python3")
    fail "needs Python 3.11 or newer, found $found; install one, or name it: make run PYTHON=/path/to/python3.12"
fi

if [ ! -x "$venv/bin/python" ] || ! usable "$venv/bin/python"; then
    rm -rf "$venv"
    "$python" -m venv "$venv" >"$venv.log" 2>&1 || {
        cat "$venv.log" >&2
        rm -rf "$venv" "$venv.log"
        fail "could not make a virtual environment with $python; on Debian and Ubuntu: apt install python3-venv"
    }
    rm -f "$venv.log"
fi

echo "kiseki: installing what $lock names into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock" ||
    fail "could not install the dependencies; is the package index reachable?"
[ -z "$alone" ] || exit 0
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ||
    fail "could not install kiseki itself into $venv"
