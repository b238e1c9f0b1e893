#!/usr/bin/env bash
# ReaLLM (chunks of 240 ms, unbounded context) on the data and alignments of run.sh; all options of run.sh work.
#   --train-args "--chunking_conf delay=12" --tag reallm_delay    label delay of 480 ms
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

./run.sh --system reallm "$@"
