#!/usr/bin/env bash
# mini_espeak: a synthetic corpus made here by espeak-ng; nothing is downloaded.
#   ./run.sh                              small: about 1 h of training speech
#   ./run.sh --data-opts "--size large" --expdir exp/large
#                                         a test set of at least 10,000 words
#   ./run.sh --data-opts "--written" --text written --normaliser english --expdir exp/written
#                                         text with capitals, punctuation and numbers; the same audio
#   ./run.sh --system ctc                 another system on the same data; --help lists them
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

# Tokens of stock ESPnet are characters: from random weights, CTC, alone or as an auxiliary loss, learns these much sooner
# than subword pieces.
../../TEMPLATE/speechllm_xl1/speechllm_xl.sh --size tiny --train-set train --valid-set dev --test-sets "test repeats" \
  --token-type bpe --vocab-size 60 --espnet-token-type char \
  --corpus-searches alsd_ctc0.3 --longform-factors 10 -- "$@"
