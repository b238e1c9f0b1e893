#!/usr/bin/env bash
# LibriSpeech with the paper's sizes and settings: 106 M encoder, 93 M decoder, 5000 unigram tokens, three speeds.
#   ./run.sh --ngpu 8                                    960 h; the archives (60 GB) are fetched from their public address
#   ./run.sh --ngpu 8 --downloads DIR                    DIR holds the archives, or the extracted LibriSpeech/
#   ./run.sh --ngpu 8 --system ctc                       another system on the same data; --help lists them
#   ./run.sh --ngpu 1 --data-opts "--train 100" --train-set train_100 \
#     --train-args "--batch_bins 20000 --accum_grad 8" --aligner-args "--batch_bins 30000 --accum_grad 8"
#                                                        the 100 hours of train-clean-100; the batches of eight GPUs on one
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")" # through links

../../TEMPLATE/speechllm_xl1/speechllm_xl.sh --size paper --train-set train_960 --valid-set dev \
  --test-sets "dev_clean dev_other test_clean test_other" --speed-perturb "0.9 1.0 1.1" \
  --token-type unigram --vocab-size 5000 --aligner-token-type unigram --aligner-vocab-size 5000 \
  --hf-letters lower -- "$@"
