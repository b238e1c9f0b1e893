# shellcheck shell=bash
# What all systems on this corpus share: options of the drivers in egs2/TEMPLATE.
# shellcheck disable=SC2034  # for the scripts that source this file
corpus=(
  --train-set train
  --valid-set dev
  --test-sets test
  --data-opts "--seed 1" # the settings were chosen on the development set of seed 0
  --token-type bpe
  --vocab-size 60
)
