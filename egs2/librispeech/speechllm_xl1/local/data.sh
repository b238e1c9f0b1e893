#!/usr/bin/env bash
# Makes data/{train_960 or train_100,dev,dev_clean,dev_other,test_clean,test_other} of LibriSpeech, in the directory it is
# called from (the recipe's).
#
#   local/data.sh [--downloads DIR] [--train 960|100]
set -euo pipefail

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
root=$(cd "${here}/../../../.." && pwd)
export LC_ALL=C PYTHONPATH="${root}${PYTHONPATH:+:${PYTHONPATH}}"

exec python3 "${here}/data_prep.py" --out data --work downloads "$@"
