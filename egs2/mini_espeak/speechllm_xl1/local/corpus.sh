# shellcheck shell=bash
# What all systems on this corpus share: options of the drivers in egs2/TEMPLATE.
# shellcheck disable=SC2034  # for the scripts that source this file
corpus=(
  --train-set train
  --valid-set dev
  --test-sets "test repeats"
  --token-type bpe
  --vocab-size 60
)
