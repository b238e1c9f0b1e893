#!/usr/bin/env bash
# ESPnet's own asr tasks on the data of run.sh: ./run_espnet.sh --asr-config train_asr_SYSTEM_tiny.yaml
# SYSTEM: ctc, transducer, las, contextual_block_conformer (streaming). Tokens are characters: from random weights, CTC,
# alone or as an auxiliary loss, learns these much sooner than subword pieces.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links
# shellcheck source=egs2/mini_espeak/speechllm_xl1/local/corpus.sh
. local/corpus.sh

../../TEMPLATE/speechllm_xl1/espnet_asr.sh "${corpus[@]}" --token-type char \
  --asr-config train_asr_ctc_tiny.yaml -- "$@"
