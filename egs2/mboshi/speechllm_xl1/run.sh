#!/usr/bin/env bash
# Mboshi (Bantu, 4.4 h of real speech by three speakers; tone is part of the spelling).
#   ./run.sh --downloads DIR      DIR holds mboshi.tar, data/ and ref_alignments/
# Validation sentences are cut from train; dev, the corpus's own, is only reported.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

../../TEMPLATE/speechllm_xl1/speechllm_xl.sh \
  --train-set train \
  --valid-set valid \
  --test-sets dev \
  --token-type char \
  --vocab-size 100 \
  --train-config train_mboshi.yaml \
  "$@"
