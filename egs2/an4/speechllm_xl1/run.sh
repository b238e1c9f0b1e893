#!/usr/bin/env bash
# AN4 (CMU Census database): real speech, ESPnet's splits.
#   ./run.sh --downloads DIR      DIR holds an4_sphere.tar.gz; without it the archive is fetched
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links
# shellcheck source=egs2/an4/speechllm_xl1/local/corpus.sh
. local/corpus.sh

../../TEMPLATE/speechllm_xl1/speechllm_xl.sh "${corpus[@]}" --train-config train_an4.yaml \
  --corpus-searches alsd_ctc0.3 -- "$@"
