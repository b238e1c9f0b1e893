#!/usr/bin/env bash
# CTC-prompt-LM baseline on the data and alignments of run.sh; all options of run.sh work.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

./run.sh --system ctc_prompt_lm --train-config train_ctc_prompt_lm_tiny.yaml "$@"
