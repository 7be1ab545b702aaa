#!/usr/bin/env bash
# Makes or refreshes the private environment .venv:  tools/setup_env.sh EXTRAS   (standalone, or standalone,dev)
# Reads PYTHON, TORCH and TORCH_INDEX (see the Makefile). Does nothing when the environment is already right.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=$1
venv=.venv
torch=${TORCH:-torch==2.13.0}
index=${TORCH_INDEX:-}

fail() {
    echo "setup_env: $*" >&2
    exit 1
}

# An environment that works is kept unless another interpreter is asked for by name.
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
have=$(version_of "$venv/bin/python")
want=$have
if [ -n "${PYTHON:-}" ] || [ -z "$have" ]; then
    want=$(version_of "${PYTHON:-python3}")
fi
case $want in
    3.10 | 3.11 | 3.12 | 3.13) ;;
    "") fail "${PYTHON:-python3} cannot be run: install Python 3.10 to 3.13, or name one with PYTHON=/path/to/python." ;;
    *) fail "${PYTHON:-python3} is Python $want, but 3.10 to 3.13 is needed: name one with PYTHON=/path/to/python." ;;
esac

# What a finished installation is recorded under: a change of any of these installs again.
state="$PWD $want $torch $index $(cksum <pyproject.toml) $(cksum <tools/setup_env.sh)"
stamp=$venv/.installed-$extras
if [ "$have" = "$want" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
    exit 0
fi

if [ "$have" != "$want" ]; then
    echo "setup_env: making $venv with Python $want"
    "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "Python $want lacks the venv module: on Debian and Ubuntu install it with 'apt install python$want-venv'."
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
fi
rm -f "$venv"/.installed-*

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input install "$@"; }
echo "setup_env: installing $torch and [$extras] into $venv (a few minutes the first time)"

# The default build of torch for Linux carries gigabytes of CUDA, which nothing uses where there is no NVIDIA GPU.
# Where torch's own index cannot be reached (a mirror of PyPI alone, say), the default build it is.
cpu_index=https://download.pytorch.org/whl/cpu
reachable() { "$venv/bin/python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=10)' "$1" 2>/dev/null; }
if [ -n "$index" ]; then
    pip --index-url "$index" "$torch" || fail "$torch could not be installed from $index."
elif [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && reachable "$cpu_index/torch/" &&
    pip --index-url "$cpu_index" "$torch"; then
    :
else
    pip "$torch" || fail "$torch could not be installed: is the network up? TORCH and TORCH_INDEX choose another build."
fi
pip --quiet --editable ".[$extras]" || fail "the requirements [$extras] of pyproject.toml could not be installed."

# What one set of extras holds, a smaller set needs no second installation for.
printf '%s\n' "$state" >"$venv/.installed-standalone"
printf '%s\n' "$state" >"$stamp"
