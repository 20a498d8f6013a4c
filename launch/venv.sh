# Sourced by the other scripts: makes .venv beside setup.cfg, installs jaxsynth with the extras in $1, activates it.
# An installation is repeated only when setup.cfg, pyproject.toml or Python changed; extras add to what is there.

PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: jaxsynth needs Python 3.11 or later; set PYTHON=/path/to/python3.11" >&2
    exit 2
fi
extras=${1:-}
stamp="$("$PYTHON" --version) $(cksum setup.cfg pyproject.toml)"
done_file=".venv/jaxsynth-installed-${extras:-base}"
if [ "$(cat "$done_file" 2>/dev/null)" != "$stamp" ]; then
    echo "installing jaxsynth${extras:+[$extras]} into .venv (about a minute)"
    if [ ! -x .venv/bin/pip ]; then
        "$PYTHON" -m venv .venv || { echo "error: cannot make .venv; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
    printf '%s' "$stamp" > "$done_file"
fi
. .venv/bin/activate
