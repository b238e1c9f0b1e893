#!/usr/bin/env bash
# AN4 (CMU Census database): real speech, ESPnet's splits.
#   ./run.sh --downloads DIR      DIR holds an4_sphere.tar.gz; without it the archive is fetched
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

../../TEMPLATE/speechllm_xl1/speechllm_xl.sh \
  --train-set train_nodev \
  --valid-set train_dev \
  --test-sets test \
  --speed-perturb "0.9 1.0 1.1" \
  --token-type bpe \
  --vocab-size 100 \
  --train-config train_an4.yaml \
  "$@"
