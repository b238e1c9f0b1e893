#!/usr/bin/env bash
# AN4 (CMU Census database): real speech, ESPnet's splits.
#   ./run.sh --downloads DIR      DIR holds an4_sphere.tar.gz; without it the archive is fetched
#   ./run.sh --system ctc         another system on the same data; --help lists them
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

# Tokens of stock ESPnet are characters: from random weights, CTC, alone or as an auxiliary loss, learns these much sooner
# than subword pieces.  The transcripts are in capitals, which an LLM would cut into pieces.
../../TEMPLATE/speechllm_xl1/speechllm_xl.sh --size an4 --train-set train_nodev --valid-set train_dev --test-sets test \
  --speed-perturb "0.9 1.0 1.1" --token-type bpe --vocab-size 100 --espnet-token-type char \
  --hf-letters lower --corpus-searches alsd_ctc0.3 -- "$@"
