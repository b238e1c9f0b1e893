#!/usr/bin/env bash
# mini_mandarin: a synthetic corpus made here by espeak-ng's Mandarin voice: no spaces, three scripts (Chinese characters,
# digits, Latin letters), punctuation.  Nothing is downloaded.
#   ./run.sh                               about 1 h of training speech
#   ./run.sh --data-opts "--size tiny"     24 utterances, to try the stages out
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

../../TEMPLATE/speechllm_xl1/speechllm_xl.sh --size tiny --train-set train --valid-set dev --test-sets test \
  --text written --normaliser basic --token-type char --corpus-searches alsd_ctc0.3 --longform-factors 10 -- "$@"
