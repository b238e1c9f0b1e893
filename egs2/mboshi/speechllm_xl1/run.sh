#!/usr/bin/env bash
# Mboshi (Bantu, 4.3 h of real speech by three speakers; tone is part of the spelling).
#   ./run.sh --downloads DIR      DIR holds mboshi.tar, data/ and ref_alignments/
#   ./run.sh --system ctc         another system on the same data; --help lists them
# Validation sentences are held out of train; dev, the corpus's own, is only reported.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

# Four times the speech that the tiny sizes were made for: fewer epochs (12, 29 and 8, not 15, 36 and 12).
../../TEMPLATE/speechllm_xl1/speechllm_xl.sh --size tiny --train-set train --valid-set valid --test-sets dev \
  --token-type char \
  --corpus-searches alsd_ctc0.3 --corpus-aligner-args "--max_epoch 8" --corpus-args "--max_epoch 12" \
  --corpus-multichunk-args "--max_epoch 29" -- "$@"
