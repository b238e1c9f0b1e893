# shellcheck shell=bash
# Which Python environment is meant: shared by install.sh and path.sh. Source it; it only defines things.

# active_prefix: the folder of the active virtualenv or conda environment, or nothing. Conda's `base` does not count:
# many shells have it on without having asked, and it is no place for 5 GB and version pins.
active_prefix() {
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    echo "$VIRTUAL_ENV"
  elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
    echo "$CONDA_PREFIX"
  fi
}

# python_version PYTHON: prints 3.11, say; fails when it does not run.
python_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# The same range as python_requires in setup.py (a test compares them), newest first.
supported_pythons="3.13 3.12 3.11 3.10"
# shellcheck disable=SC2034  # used by install.sh
supported_range="${supported_pythons##* } to ${supported_pythons%% *}"

# is_supported VERSION
is_supported() {
  case " $supported_pythons " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

# has_packages PYTHON: the heavy requirements can be found from there (found, not imported: 0.1 s).
has_packages() {
  "$1" -c 'import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, "torch torchaudio espnet2 transformers peft jiwer soundfile soxr".split())))' 2>/dev/null
}
