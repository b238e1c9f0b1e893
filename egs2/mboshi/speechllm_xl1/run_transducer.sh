#!/usr/bin/env bash
# Transducer baseline on the data of run.sh; all options of run.sh work.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

./run.sh --system transducer --train-config train_transducer_tiny.yaml "$@"
