#!/usr/bin/env bash
# Joins the utterances of a set to long recordings (paper, table IV), in the ways people use:
#   across     consecutive utterances, whoever speaks: all recordings but the last are full   <set>_<N>x
#   speaker    consecutive utterances of one speaker, whose last recording may be shorter     <set>_<N>x_speaker
#   shuffled   utterances in random order                                                     <set>_<N>x_shuffled
#   local/longform.sh --dump dump/raw/test --factors "2 10" --ways "speaker shuffled" --nj 4
# --gap-seconds 0.5, --seed 1 and --sample-rate 8000 are those of `speechllm-xl data longform`.  Prints the names of the sets.
set -euo pipefail

dump='' factors="2 10" ways="across" nj=1 more=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  esac
  [ $# -ge 2 ] || { echo "longform.sh: option $1 needs a value; see --help" >&2; exit 2; }
  case $1 in
    --dump) dump=${2%/} ;;
    --factors) factors=$2 ;;
    --ways) ways=$2 ;;
    --nj) nj=$2 ;;
    --gap-seconds | --seed | --sample-rate) more+=("$1" "$2") ;;
    *) echo "longform.sh: unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift 2
done
for way in $ways; do
  [[ " across speaker shuffled " = *" $way "* ]] ||
    { echo "longform.sh: --ways: there are across, speaker, shuffled, not '$way'" >&2; exit 2; }
done
[ -f "$dump/wav.scp" ] || { echo "longform.sh: --dump '$dump' holds no wav.scp: give a formatted set" >&2; exit 2; }

# shellcheck source=local/path.sh
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/path.sh"
# shellcheck source=local/cmd.sh
. "$SPEECHLLM_XL_ROOT/local/cmd.sh"
# shellcheck source=local/lock.sh
. "$SPEECHLLM_XL_ROOT/local/lock.sh"
# One at a time: systems that are decoded side by side want the same sets.
say() { echo "longform.sh: $*" >&2; }
why=$(can_write "$(dirname "$dump")/.longform.lock") || { say "$why"; exit 2; }
exec 9>>"$(dirname "$dump")/.longform.lock"
hold_lock 9 "$(dirname "$dump")" say
for way in $ways; do
  case $way in
    across) suffix='' options=(--across-speakers) ;;
    speaker) suffix=_speaker options=() ;;
    shuffled) suffix=_shuffled options=(--order shuffled --across-speakers) ;;
  esac
  for factor in $factors; do
    out=${dump}_${factor}x$suffix
    pooled_cmd "$nj" "$(dirname "$dump")/../log/longform_$(basename "$out").log" \
      python3 -m espnet_speechllm_xl data longform --dump "$dump" --out "$out" --factor "$factor" \
      ${options[0]+"${options[@]}"} ${more[0]+"${more[@]}"} >&2
    basename "$out"
  done
done
