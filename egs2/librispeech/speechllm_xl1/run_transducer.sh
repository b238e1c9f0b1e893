#!/usr/bin/env bash
# Transducer baseline on the data of run.sh; all options of run.sh work. Its encoder starts from that of run_ctc.sh, as in
# the small recipes; --init none starts from random weights.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

./run.sh --system transducer --train-config train_transducer_paper.yaml --init ctc_paper "$@"
