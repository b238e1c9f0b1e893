#!/usr/bin/env bash
# FSDD (Free Spoken Digit Dataset): the English digits, one a recording, by six speakers.
#   git clone https://github.com/Jakobovski/free-spoken-digit-dataset downloads
#   ./run.sh                      or: ./run.sh --downloads DIR, with recordings/ or fsdd.tar in DIR
#   ./run.sh --system ctc         another system on the same data; --help lists them
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

# The shortest digit has 0.14 s. Ten words are learnt in fewer epochs (8, not 12) by the aligner.
../../TEMPLATE/speechllm_xl1/speechllm_xl.sh --size tiny --train-set train --valid-set dev --test-sets test \
  --token-type char --min-wav-duration 0.1 \
  --corpus-searches alsd_ctc0.3 --corpus-aligner-args "--max_epoch 8" -- "$@"
