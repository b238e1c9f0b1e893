# shellcheck shell=bash
# What all systems on this corpus share: options of the drivers in egs2/TEMPLATE.
# shellcheck disable=SC2034  # for the scripts that source this file
corpus=(
  --train-set train_960
  --valid-set dev
  --test-sets "dev_clean dev_other test_clean test_other"
  --speed-perturb "0.9 1.0 1.1"
  --token-type unigram
  --vocab-size 5000
)
