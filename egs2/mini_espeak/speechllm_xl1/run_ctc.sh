#!/usr/bin/env bash
# CTC baseline on the data of run.sh; all options of run.sh work.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

./run.sh --system ctc --train-config train_ctc_tiny.yaml --init aligner "$@"
