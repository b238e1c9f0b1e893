#!/usr/bin/env bash
# mini_espeak: a synthetic corpus made here by espeak-ng; nothing is downloaded.
#   ./run.sh                              small: about 1 h of training speech
#   ./run.sh --data-opts "--size large" --expdir exp/large
#                                         a test set of at least 10,000 words
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links
# shellcheck source=egs2/mini_espeak/speechllm_xl1/local/corpus.sh
. local/corpus.sh

../../TEMPLATE/speechllm_xl1/speechllm_xl.sh "${corpus[@]}" --corpus-searches alsd_ctc0.3 \
  --longform-factors 10 -- "$@"
