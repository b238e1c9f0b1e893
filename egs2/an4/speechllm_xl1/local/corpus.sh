# shellcheck shell=bash
# What all systems on this corpus share: options of the drivers in egs2/TEMPLATE.
# shellcheck disable=SC2034  # for the scripts that source this file
corpus=(
  --train-set train_nodev
  --valid-set train_dev
  --test-sets test
  --speed-perturb "0.9 1.0 1.1"
  --token-type bpe
  --vocab-size 100
)
