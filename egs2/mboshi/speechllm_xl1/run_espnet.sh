#!/usr/bin/env bash
# ESPnet's own asr tasks on the data of run.sh: ./run_espnet.sh --asr-config train_asr_SYSTEM_tiny.yaml
# SYSTEM: ctc, transducer, las, contextual_block_conformer (streaming)
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links
# shellcheck source=egs2/mboshi/speechllm_xl1/local/corpus.sh
. local/corpus.sh

../../TEMPLATE/speechllm_xl1/espnet_asr.sh "${corpus[@]}" --asr-config train_asr_ctc_tiny.yaml -- "$@"
