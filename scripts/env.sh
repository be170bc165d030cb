# Sourced by quickstart.sh and test.sh: a virtual environment in .venv with this checkout installed, and $PYTHON in it.
# It is built once for each set of extras and rebuilt when pyproject.toml changes.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON=.venv/bin/python

ensure_env() { # extras, separated by commas
    local want
    want="$(cksum <pyproject.toml)"
    [ -x "$PYTHON" ] || "${PYTHON3:-python3}" -m venv .venv || exit 1
    if [ "$(cat ".venv/installed-$1" 2>/dev/null)" != "$want" ]; then
        echo "Installing timm-attn[$1] into .venv: 5.5 to 6.5 GB, a few minutes the first time."
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".[$1]" || exit 1
        echo "$want" >".venv/installed-$1"
    fi
}
