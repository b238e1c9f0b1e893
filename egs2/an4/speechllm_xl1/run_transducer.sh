#!/usr/bin/env bash
# Transducer baseline on the data of run.sh; all options of run.sh work. Its encoder starts from that of run_ctc.sh: from
# random weights, on little speech, the prediction network memorises the transcripts before the encoder is of any use.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

./run.sh --system transducer --train-config train_transducer_an4.yaml --init ctc_an4 "$@"
