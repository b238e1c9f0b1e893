#!/usr/bin/env bash
# Makes data/{train,valid,dev} of Mboshi, in the directory it is called from (the recipe's).
#
#   local/data.sh [--downloads DIR]
#
# DIR holds mboshi.tar, data/ and ref_alignments/.  Without it: ${SPEECHLLM_XL_DATA}/mboshi if that variable is set.
set -euo pipefail

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
root=$(cd "${here}/../../../.." && pwd)
export LC_ALL=C PYTHONPATH="${root}${PYTHONPATH:+:${PYTHONPATH}}"
[ $# -gt 0 ] || set -- --downloads "${SPEECHLLM_XL_DATA:-downloads}"

exec python3 "${here}/data_prep.py" --out data "$@"
