#!/usr/bin/env bash
# Non-streaming SpeechLLM (one chunk holds all audio) on the data and alignments of run.sh; all options of run.sh work.
#   --system nonstreaming_full    with an encoder that sees the whole utterance
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

./run.sh --system nonstreaming "$@"
