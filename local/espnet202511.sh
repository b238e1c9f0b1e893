# shellcheck shell=bash
# What only ESPnet 202511 needs of an installation, the last release for Python 3.10 and 3.11; install.sh sources it.
# ESPnet 202609 and later need none of it: with Python 3.11 out of setup.py this file goes, too.
# shellcheck disable=SC2154  # prefix, tmp, log, repo, extras are install.sh's

# From pip 26 on, PyPI packages with a direct URL among their requirements are refused, even in an extra nobody asks
# for; ci_sdr, which this ESPnet needs, has two of them.
old_pip_version=25.3

# is_espnet202511 PYTHON ESPNET: whether that Python version, or the ESPnet that is installed, if any, makes it this one.
is_espnet202511() {
  case $1 in 3.10 | 3.11) return 0 ;; *) [ "$2" = 202511 ] ;; esac
}

# install_espnet202511 TARGET: in install.sh's environment, by a pip in a temporary folder; the user's stays as it is.
install_espnet202511() {
  get_old_pip
  # PyPI has pyworld (ESPnet's pitch extractor, used by nothing here) as source only: it needs a C++ compiler.
  if with_progress "building pyworld" old_pip wheel --no-deps -w "$tmp/wheels" "pyworld>=0.3.4"; then
    with_progress "installing packages" old_pip install --find-links "$tmp/wheels" -e "$1" || failed "pip install"
  else
    say "pyworld does not build here (no C++ compiler?): going on without it, nothing here uses it"
    with_progress "installing packages" install_without_pyworld || failed "pip install"
  fi
}

old_pip() { run_pip "$prefix/bin/python" "$tmp/pip/pip" "$@"; }

# get_old_pip: with the environment's own pip or, where it has none, a passing venv's.
get_old_pip() {
  local host=$prefix/bin/python
  if ! "$host" -m pip --version >/dev/null 2>&1; then
    host=$tmp/host/bin/python
    "$prefix/bin/python" -m venv "$tmp/host" >>"$log" 2>&1 || failed "getting a pip (python -m venv)"
  fi
  run_pip "$host" -m pip install -q --no-deps --target "$tmp/pip" "pip==$old_pip_version" >>"$log" 2>&1 ||
    failed "downloading pip $old_pip_version"
}

# install_without_pyworld: as pip would, but for the one requirement of espnet that may not build.
install_without_pyworld() {
  old_pip install --no-deps -e "$repo" &&
    list_requirements espnet_speechllm_xl "$extras" >"$tmp/own.txt" &&
    grep '^espnet[=<>]' "$tmp/own.txt" >"$tmp/espnet.txt" &&
    old_pip install --no-deps -r "$tmp/espnet.txt" &&
    list_requirements espnet "" >"$tmp/espnets.txt" &&
    grep -v '^espnet[=<>]' "$tmp/own.txt" >"$tmp/all.txt" &&
    grep -v '^pyworld' "$tmp/espnets.txt" >>"$tmp/all.txt" &&
    old_pip install -r "$tmp/all.txt"
}

# list_requirements DISTRIBUTION EXTRAS: what its installed metadata asks for, a line each; commas between EXTRAS.
list_requirements() {
  (cd "$tmp" && PYTHONPATH=$tmp/pip "$prefix/bin/python" - "$@" <<'PY'
import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

for line in requires(sys.argv[1]):
    asked = Requirement(line)
    if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in sys.argv[2].split(",")):
        asked.marker = None
        print(asked)
PY
  )
}
