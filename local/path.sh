# shellcheck shell=bash
# Source this first in every script: the Python environment, the package on PYTHONPATH, byte-wise sorting.
# Uses the active environment when the packages are there, else <repository>/.venv as local/install.sh makes it.

SPEECHLLM_XL_ROOT=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
export SPEECHLLM_XL_ROOT
# shellcheck source=local/env.sh
. "$SPEECHLLM_XL_ROOT/local/env.sh"

_prefix=$(active_prefix)
if [ -z "$_prefix" ] || ! has_packages "$_prefix/bin/python"; then
  _prefix=$SPEECHLLM_XL_ROOT/.venv
  if ! has_packages "$_prefix/bin/python"; then
    echo "path.sh: no environment with the packages: run $SPEECHLLM_XL_ROOT/local/install.sh" >&2
    # shellcheck disable=SC2317  # the exit is for a script run, not sourced
    return 1 2>/dev/null || exit 1
  fi
  export VIRTUAL_ENV=$_prefix
fi
case $PATH in "$_prefix/bin":*) ;; *) export PATH=$_prefix/bin:$PATH ;; esac
unset _prefix PYTHONHOME

case :${PYTHONPATH:-}: in
  *:"$SPEECHLLM_XL_ROOT":*) ;;
  *) export PYTHONPATH=$SPEECHLLM_XL_ROOT${PYTHONPATH:+:$PYTHONPATH} ;;
esac
export LC_ALL=C PYTHONIOENCODING=UTF-8
# All cores for a single process up to 8, beyond which these model sizes gain nothing; cmd.sh divides them among shards.
if [ -z "${OMP_NUM_THREADS:-}" ]; then
  OMP_NUM_THREADS=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  [ "$OMP_NUM_THREADS" -le 8 ] || OMP_NUM_THREADS=8
fi
export OMP_NUM_THREADS
