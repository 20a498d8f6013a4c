# Sourced by the other scripts: makes .venv beside setup.cfg, installs jaxsynth with the extras in $1, activates it.
# Nothing is installed again while setup.cfg, the extras and Python stay the same.

PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: jaxsynth needs Python 3.11 or later; set PYTHON=/path/to/python3.11" >&2
    exit 2
fi
extras=${1:-}
stamp="$("$PYTHON" --version) [$extras] $(cksum setup.cfg pyproject.toml)"
if [ "$(cat .venv/jaxsynth-installed 2>/dev/null)" != "$stamp" ]; then
    echo "installing jaxsynth into .venv (about a minute)"
    # A .venv of an interrupted or older installation is made anew.
    "$PYTHON" -m venv --clear .venv || { echo "error: cannot make .venv; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
    printf '%s' "$stamp" > .venv/jaxsynth-installed
fi
. .venv/bin/activate
