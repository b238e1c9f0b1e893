#!/usr/bin/env bash
# mini_espeak: a synthetic corpus made here by espeak-ng; nothing is downloaded.
#   ./run.sh                              small: about 1 h of training speech
#   ./run.sh --data-opts "--size large"   a test set of at least 10,000 words
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Seed 1: the settings were chosen on the development set of seed 0.
../../TEMPLATE/speechllm_xl1/speechllm_xl.sh \
  --train-set train \
  --valid-set dev \
  --test-sets test \
  --data-opts "--seed 1" \
  --token-type bpe \
  --vocab-size 60 \
  --longform-factors 10 \
  "$@"
