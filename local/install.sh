#!/usr/bin/env bash
# Makes the Python environment of this repository, or completes the active one.
set -euo pipefail

usage="usage: local/install.sh [--extras test|docs|llm|test,docs] [--python PYTHON]

Without an active environment: makes <repository>/.venv with PYTHON (default: the newest supported one among python3.13,
python3.12, python3.11, python3.10, python3 and python that can make a virtual environment). Inside an active virtualenv
or conda environment (conda's base does not count): installs into that, keeping every package that satisfies setup.py, and
says which ones it had to replace. Afterwards, and when nothing has changed since the last time, it returns at once."

repo=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")") # through links
# shellcheck source=local/env.sh
. "$repo/local/env.sh"
# shellcheck source=local/espnet202511.sh
. "$repo/local/espnet202511.sh"
# shellcheck source=local/lock.sh
. "$repo/local/lock.sh"

say() { echo "install.sh: $*" >&2; }
die() { say "$*"; exit 1; }

extras="" python="" job="" tmp=""
while [ $# -gt 0 ]; do
  case $1 in
    --extras | --python)
      [ $# -ge 2 ] || { say "$1 needs a value"; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    -h | --help) echo "$usage"; exit 0 ;;
    *) say "unknown option $1; see local/install.sh --help"; exit 2 ;;
  esac
done
known_extras="test docs llm"
for extra in ${extras//,/ }; do
  [[ " $known_extras " = *" $extra "* ]] || { say "--extras takes $known_extras, with a comma between, not '$extras'"; exit 2; }
done

cleanup() {
  [ -z "$job" ] || kill -- "-$job" 2>/dev/null || true
  [ -z "$tmp" ] || rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# find_python [PYTHON]: prints the path of the newest Python that can hold the package.
find_python() {
  local candidate version found="" newest=0 bare=() seen="" candidates=()
  for version in $supported_pythons; do candidates+=("python$version"); done
  candidates+=(python3 python)
  [ -z "${1:-}" ] || candidates=("$1")
  for candidate in "${candidates[@]}"; do
    version=$(python_version "$candidate") || continue
    if ! is_supported "$version"; then
      seen="$seen $candidate is $version;"
    elif ! "$candidate" -c 'import ensurepip' 2>/dev/null; then # Debian packs it apart
      bare+=("python$version-venv")
    elif [ "${version#3.}" -gt "$newest" ]; then
      newest=${version#3.} found=$(command -v "$candidate")
    fi
  done
  [ -z "$found" ] || { echo "$found"; return; }
  [ ${#bare[@]} -eq 0 ] || die "Python lacks its venv module: apt install ${bare[0]} (Debian, Ubuntu), then run this again"
  die "needs Python $supported_range, which ESPnet runs on;${seen:- ${1:-python3} does not run;} install one beside it" \
    "(Debian, Ubuntu: apt install python3.13 python3.13-venv; Fedora: dnf install python3.13; conda:" \
    "conda create -n xl python=3.13, and activate it; uv: uv python install 3.13), or name one with --python"
}

# is_complete: the environment was finished for this repository, this setup.py and these extras, and still runs.
is_complete() {
  [ -f "$stamp" ] && grep -qxF "repository $repo" "$stamp" && grep -qxF "setup $setup_sum" "$stamp" &&
    has_extras && has_packages "$prefix/bin/python"
}
has_extras() {
  local extra
  for extra in ${extras//,/ }; do grep -qxF "extras $extra" "$stamp" || return; done
}

# take_lock: one installation at a time in an environment; $mark stands there while one is under way or was killed.
take_lock() {
  local why
  why=$(can_write "$mark") || die "$why"
  while :; do
    exec 9>>"$mark"
    hold_lock 9 "$prefix" say
    [ "$mark" -ef /dev/fd/9 ] && break
  done
}

# prepare_own_venv: a .venv that runs, empty or to be completed. One that runs is never removed: others may be using it.
prepare_own_venv() {
  local base
  if [ -x "$prefix/bin/python" ]; then
    [ ! -s "$mark" ] || drop_half_written
    return
  elif [ ! -s "$mark" ] && [ ! -f "$stamp" ] && [ -n "$(find "$prefix" -mindepth 1 ! -name "${mark##*/}" -print -quit)" ]; then
    rm -f "$mark"
    die "$prefix is in the way and is no environment: remove it, then run this again"
  fi
  base=$(find_python "$python")
  echo started >&9
  find "$prefix" -mindepth 1 ! -name "${mark##*/}" -delete
  say "making $prefix with $base"
  "$base" -m venv "$prefix" >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    find "$prefix" -mindepth 1 ! -name "${log##*/}" -delete
    echo started >"$mark"
    die "$base cannot make a virtual environment (Debian/Ubuntu: apt install python3-venv)"
  }
}

# drop_half_written: pip writes a package's RECORD last, yet takes one without it for installed.
drop_half_written() {
  local info
  say "an earlier installation into $prefix was cut off: completing it"
  for info in "$prefix"/lib/python*/site-packages/*.dist-info; do
    [ ! -d "$info" ] || [ -e "$info/RECORD" ] || rm -rf "$info"
  done
}

# last_lines N: of what pip said.
last_lines() { tr -d '\r' <"$log" | grep -vE '^ *$|WARNING' | tail -n "$1"; }

# with_progress LABEL COMMAND...: its output goes to the log; a line now and then says that it lives.
with_progress() {
  local label=$1 start=$SECONDS next=15 status=0
  shift
  printf '\n== %s\n' "$label" >>"$log"
  set -m # a process group of its own, so that cleanup ends pip and what pip started
  "$@" </dev/null >>"$log" 2>&1 &
  job=$!
  set +m
  while kill -0 "$job" 2>/dev/null; do
    sleep 0.5
    if [ $((SECONDS - start)) -ge $next ]; then
      say "$label, $((SECONDS - start)) s: $(last_lines 1 | cut -c 1-90)"
      next=$((next * 2 < next + 60 ? next * 2 : next + 60))
    fi
  done
  wait "$job" || status=$?
  job=""
  return $status
}

# failed WHAT: what pip said, and a next action. pip itself ended, so nothing is half-written: no need to start anew.
failed() {
  : >"$mark"
  last_lines 12 >&2
  die "$1 failed; the whole output is in $log. With network and disk space (11 GB) at hand, run the same command again"
}

# run_pip COMMAND...: without settings of the user's that would send packages elsewhere, or take them from there.
run_pip() {
  env -u PYTHONPATH -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_DRY_RUN PYTHONNOUSERSITE=1 \
    PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off "$@"
}
# pip COMMAND...: the environment's own or, where it has none, that of uv or one that Python brings along.
pip() {
  local python=$prefix/bin/python
  if run_pip "$python" -m pip --version >/dev/null 2>&1; then
    run_pip "$python" -m pip "$@"
  elif command -v uv >/dev/null; then
    run_pip uv pip "$1" --python "$python" "${@:2}"
  else
    run_pip "$python" -m ensurepip && run_pip "$python" -m pip "$@"
  fi
}

# installed: name and version of every package there, a line each.
installed() {
  "$prefix/bin/python" - <<'PY' | sort -u
from importlib.metadata import distributions

for each in distributions():
    print(each.metadata["Name"].lower().replace("_", "-"), each.version)
PY
}

# say_replaced: the packages of the user's whose version is another now.
say_replaced() {
  local replaced
  replaced=$(installed | join "$tmp/before" - | awk '$2 != $3 {printf "%s%s %s by %s", sep, $1, $2, $3; sep = ", "}')
  [ -z "$replaced" ] || say "replaced in $prefix, as setup.py needs it: $replaced"
}

# check_espnet: that of the user's environment must be one that runs here; it is not replaced by another.
check_espnet() {
  local found
  found=$(espnet_version)
  case $found in
    "" | 202511* | 202609* | 202610* | 202611*) return ;;
  esac
  die "the active environment $prefix has ESPnet $found; supported are 202511 and 202609 to 202611: update it there," \
    "or deactivate the environment, for one of its own"
}

# espnet_version: of the installed one, or nothing.
espnet_version() {
  "$prefix/bin/python" -c 'from importlib.metadata import version; print(version("espnet"))' 2>/dev/null || true
}

install_packages() {
  local target=$repo
  [ -z "$extras" ] || target="${repo}[$extras]"
  if is_espnet202511 "$version" "$(espnet_version)"; then
    install_espnet202511 "$target"
  else
    with_progress "installing packages" pip install -e "$target" || failed "pip install"
  fi
  # The one pair within the bounds of setup.py that does not load; pip makes it where something keeps torch at 2.11.
  if installed | grep -q '^torch 2\.11\.' && installed | grep -qx 'torchaudio 2\.11\.1'; then
    with_progress "torchaudio 2.11.0 for torch 2.11" pip install --no-deps "torchaudio==2.11.0" || failed "pip install"
  fi
}

# import_check: imports what the recipes need; its last line (espnet prints some, too) holds the versions.
import_check() {
  (cd "$tmp" && "$prefix/bin/python" -W ignore - <<'PY'
import importlib
import logging
import platform
from importlib.metadata import version

from espnet_speechllm_xl.training.compat import check_stack

check_stack()
logging.disable()
shown = ["torch", "torchaudio", "espnet", "transformers"]
for name in "setuptools torch torchaudio transformers peft jiwer sentencepiece kaldiio soundfile soxr matplotlib".split():
    importlib.import_module(name)
for name in ["starlette", "uvicorn", "websockets", "python_multipart", "prometheus_client"]:
    importlib.import_module(name)
for name in ["tensorboard", "espeakng_loader", "espnet2.tasks.abs_task", "espnet_speechllm_xl"]:
    importlib.import_module(name)
print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in shown))
PY
  )
}

# A function, so that bash has read the whole file before it starts: an edit or a git pull meanwhile does no harm.
main() {
  started=$SECONDS
  prefix=$(active_prefix)
  own=0
  if [ -z "$prefix" ] || [ "$prefix" -ef "$repo/.venv" ]; then
    prefix=$repo/.venv own=1
  fi
  stamp=$prefix/.speechllm_xl.complete
  mark=$prefix/.speechllm_xl.incomplete
  log=$prefix/.speechllm_xl.log
  setup_sum=$(cksum <"$repo/setup.py")

  if [ ! -e "$mark" ] && is_complete; then
    say "environment $prefix is ready"
    exit 0
  fi
  if [ "$own" = 0 ]; then
    [ -z "$python" ] || die "--python is for a new environment, but $prefix is active: deactivate it first"
    version=$(python_version "$prefix/bin/python") ||
      die "the active environment $prefix has no working bin/python: deactivate it, or unset VIRTUAL_ENV/CONDA_PREFIX"
    is_supported "$version" ||
      die "the active environment $prefix has Python $version; needs $supported_range: deactivate it, then run this again"
    check_espnet
  else
    python_version "$prefix/bin/python" >/dev/null || find_python "$python" >/dev/null
  fi
  take_lock
  if [ ! -s "$mark" ] && is_complete; then
    rm -f "$mark"
    say "environment $prefix is ready"
    exit 0
  fi
  [ "$own" = 0 ] || prepare_own_venv
  version=$(python_version "$prefix/bin/python")
  is_supported "$version" || die "$prefix has Python $version; needs $supported_range: remove it, then run this again"
  # What an earlier run installed stays installed: the stamp must go on naming it.
  for extra in $known_extras; do
    [[ ,$extras, = *,$extra,* ]] || ! grep -qsxF "extras $extra" "$stamp" || extras+=${extras:+,}$extra
  done
  echo started >&9
  rm -f "$stamp"
  : >"$log"
  tmp=$(mktemp -d)
  say "installing into $prefix (Python $version): 6 to 7 GB the first time, 2 to 15 minutes"
  installed >"$tmp/before"
  install_packages
  [ "$own" = 1 ] || say_replaced
  versions=$(import_check 2>>"$log" | tail -n 1) || failed "the import check"
  printf 'repository %s\nsetup %s\n' "$repo" "$setup_sum" >"$stamp.new"
  for extra in ${extras//,/ }; do echo "extras $extra" >>"$stamp.new"; done
  mv "$stamp.new" "$stamp"
  rm -f "$mark"
  say "environment $prefix is ready: $versions ($((SECONDS - started)) s)"
}

main
