#!/usr/bin/env bash
# LJSpeech: one reader, text as people write it (capitals, punctuation, numbers).  Numbers show that a system learns to
# write; of one speaker they say nothing on others.
#   ./run.sh --downloads DIR      DIR holds LJSpeech-1.1, or ljspeech_subset with 325 of its clips (35 minutes)
#   ./run.sh --text plain         small letters, without punctuation, numbers as they are read
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

../../TEMPLATE/speechllm_xl1/speechllm_xl.sh --size tiny --train-set train --valid-set dev --test-sets test \
  --text written --normaliser english --token-type char --corpus-searches alsd_ctc0.3 -- "$@"
