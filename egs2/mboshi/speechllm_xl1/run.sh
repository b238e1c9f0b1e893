#!/usr/bin/env bash
# Mboshi (Bantu, 4.3 h of real speech by three speakers; tone is part of the spelling).
#   ./run.sh --downloads DIR      DIR holds mboshi.tar, data/ and ref_alignments/
# Validation sentences are held out of train; dev, the corpus's own, is only reported.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links
# shellcheck source=egs2/mboshi/speechllm_xl1/local/corpus.sh
. local/corpus.sh

# Four times the speech that the tiny sizes were made for: fewer epochs (12 and 8, not 15 and 12), a longer schedule.
../../TEMPLATE/speechllm_xl1/speechllm_xl.sh "${corpus[@]}" --train-config train_tiny.yaml --corpus-searches alsd_ctc0.3 \
  --corpus-aligner-args "--max_epoch 8" \
  --corpus-args "--max_epoch 12" -- "$@"
