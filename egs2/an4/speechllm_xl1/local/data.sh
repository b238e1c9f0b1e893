#!/usr/bin/env bash
# Makes data/{train_nodev,train_dev,test} of AN4, in the directory it is called from (the recipe's).
#
#   local/data.sh [--downloads DIR]
#
# DIR holds an4_sphere.tar.gz or an extracted an4/.  Without it: ${SPEECHLLM_XL_DATA}/an4 if that variable is set,
# else downloads/ of the recipe, into which the archive is fetched from its public address when it is not there.
set -euo pipefail

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
root=$(cd "${here}/../../../.." && pwd)
export LC_ALL=C PYTHONPATH="${root}${PYTHONPATH:+:${PYTHONPATH}}"

exec python3 "${here}/data_prep.py" --out data --work downloads "$@"
