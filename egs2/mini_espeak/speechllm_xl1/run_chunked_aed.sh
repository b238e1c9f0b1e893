#!/usr/bin/env bash
# Chunked AED baseline on the data and alignments of run.sh; all options of run.sh work.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

./run.sh --system chunked_aed --train-config train_chunked_aed_tiny.yaml "$@"
