#!/usr/bin/env bash
# Does the package run on this machine's GPU, and how fast?  One command of at most eight minutes, one report.
#   local/gpu_check.sh                        writes gpu_check.md, or $OUT/gpu_check.md where OUT is set
#   local/gpu_check.sh --parts trains alike   only these parts; --help lists them
#   local/gpu_check.sh --device cpu --tiny    whether the check itself runs, on a machine without a GPU
# Exit status: 0 all parts done and all checks hold, 1 not so, 2 wrong use or no GPU.
set -euo pipefail
# shellcheck source=local/path.sh
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/path.sh"
exec python3 -m espnet_speechllm_xl.benchmarks.gpu_check "$@"
