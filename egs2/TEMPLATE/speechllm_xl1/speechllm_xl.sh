#!/usr/bin/env bash
# The driver of every recipe: from audio to RESULTS.md in stages.  A corpus' run.sh sets the variables below by options
# (--name value) and calls it from the recipe's directory; a user's options come last and win.
#
#   ./run.sh                                everything but the latency stage, which streams all test sets
#   ./run.sh --stage 5 --stop-stage 6       some stages; names work too: --stage aligner --stop-stage align
#   ./run.sh --help                         the stages and options with their values
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../../.." && pwd -P)

stages=(data perturb format tokens aligner align train decode score longform pack latency)

# options begin
stage=1               # first stage, number or name
stop_stage=pack       # last stage; latency comes after it: --stage latency --stop-stage latency
nj=2                  # processes for formatting, aligning and decoding
ngpu=0                # GPUs for training on one machine; more than one: DDP
device=               # of aligning and decoding: cpu or cuda (default: cuda if ngpu > 0)
train_set=train       # names of the sets in data/
valid_set=dev
test_sets="test"
downloads=            # where the corpus' archive is, passed to local/data.sh
data_opts=            # further options of local/data.sh
kaldi_data=           # take DIR/<set> instead of running local/data.sh
dumpdir=              # take this ESPnet dump (DIR/raw/<set>) instead of formatting
speed_perturb=        # e.g. "0.9 1.0 1.1"
min_wav_duration=0.2  # seconds; shorter training utterances are left out
max_wav_duration=30   # seconds
token_type=bpe        # of the recogniser: bpe, unigram, char or hf
vocab_size=100        # tokens (bpe, unigram)
hf_tokenizer=         # directory, for token_type hf
aligner_token_type=char # of the aligner: char, bpe or unigram; CTC learns characters much sooner than pieces
aligner_vocab_size=100  # tokens (bpe, unigram)
alignment=ctc         # ctc, or ctm:DIR with DIR/<set>.ctm (word times, seconds), or ctm:ref for the data's own ref.ctm
aligner_config=       # YAML of the aligner (default: that of the recogniser with train_aligner_ in its name)
aligner_args=         # further ESPnet options, e.g. "--max_epoch 20"
aligner_tag=aligner
train_config=train_tiny.yaml # YAML of the recogniser: a path, or a name in conf/ of the recipe or of the repository
train_args=
tag=                  # of the experiment (default: speechllm_xl_ and the YAML's name)
searches="greedy alsd" # decoded one after the other
beam_size=8
decode_args=          # further options of speechllm-xl decode, e.g. "--chunk-size 0.64"
decode_tag=           # appended to decode_<search>
longform_factors="2 10"
latency_args=         # further options of speechllm-xl latency, e.g. "--chunk-sizes 0.64,1.28 --search greedy"
expdir=exp
results=RESULTS.md
# options end

log() { printf '%s %s\n' "$(date '+%H:%M:%S')" "$*"; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 2; }

usage() {
  printf 'usage: ./run.sh [--option value ...]\n\nstages:'
  local i
  for i in "${!stages[@]}"; do printf ' %d %s' $((i + 1)) "${stages[i]}"; done
  printf '\n\noptions (default: description):\n'
  local line name
  while read -r line; do
    name=${line%%=*}
    printf '  --%s %s\n' "${name//_/-}" "${line#*=}"
  done < <(option_lines)
}
option_lines() { sed -n '/^# options begin/,/^# options end/p' "${BASH_SOURCE[0]}" | grep '^[a-z_]*='; }

# For RESULTS.md: the options that make a difference, as they could be typed again.
command=$(basename "${BASH_SOURCE[0]}")
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --*)
      name=${1#--}
      name=${name//-/_}
      if ! [[ $name =~ ^[a-z_]+$ ]] || ! option_lines | grep "^$name=" >/dev/null; then
        die "unknown option $1; ./run.sh --help lists them"
      fi
      [ $# -ge 2 ] || die "option $1 needs a value"
      printf -v "$name" '%s' "$2"
      case $name in stage | stop_stage | nj | downloads) ;; *) command+=$(printf ' %s %q' "$1" "$2") ;; esac
      shift 2
      ;;
    *) die "unexpected argument '$1'; ./run.sh --help" ;;
  esac
done

stage_number() {
  local i
  for i in "${!stages[@]}"; do
    if [ "$1" = "${stages[i]}" ] || [ "$1" = $((i + 1)) ]; then echo $((i + 1)); return; fi
  done
  die "no stage '$1'; there are: ${stages[*]}"
}
stage=$(stage_number "$stage") || exit 2
stop_stage=$(stage_number "$stop_stage") || exit 2
[ "$stage" -le "$stop_stage" ] || die "--stage ${stages[stage - 1]} comes after --stop-stage ${stages[stop_stage - 1]}"

# runs NUMBER [REASON]: whether a stage is to run; a REASON leaves it out.
runs() {
  [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] || return 1
  log "stage $1: ${stages[$1 - 1]}${2:+: nothing to do ($2)}"
  [ -z "${2:-}" ]
}

# A recipe's own conf/ comes before the shared one.
conf() {
  local file
  for file in "$1" "conf/$1" "$root/conf/$1"; do
    if [ -f "$file" ]; then echo "$file"; return; fi
  done
  die "no configuration $1 here, in conf/ or in $root/conf"
}
size=$(basename "$train_config" .yaml)
size=${size#train_}
train_config=$(conf "$train_config") || exit 2
aligner_config=$(conf "${aligner_config:-train_aligner_$size.yaml}") || exit 2
tag=${tag:-speechllm_xl_$size}
[ -n "$device" ] || { device=cpu; [ "$ngpu" -eq 0 ] || device=cuda; }

# shellcheck source=local/install.sh
"$root/local/install.sh"
# shellcheck source=local/path.sh
. "$root/local/path.sh"
# shellcheck source=local/cmd.sh
. "$root/local/cmd.sh"

data_tool() { python3 -m espnet_speechllm_xl.bin.data "$@"; }
speechllm_xl() { python3 -m espnet_speechllm_xl "$@"; }

train_data=$train_set
[ -z "$speed_perturb" ] || train_data=${train_set}_sp
no_perturb='' no_format='' no_aligner=''
[ -n "$speed_perturb" ] || no_perturb="no --speed-perturb"
[ -z "$dumpdir" ] || { no_format="--dumpdir $dumpdir" no_perturb=$no_format; }
[ "$alignment" = ctc ] || no_aligner="--alignment $alignment"
dump=${dumpdir:-dump}/raw
aligner=$expdir/$aligner_tag
model=$expdir/$tag
aligned=$model/aligned

if runs 1; then
  if [ -n "$kaldi_data" ]; then
    for set in $train_set $valid_set $test_sets; do
      data_tool check "$kaldi_data/$set"
    done
  elif [ -z "$dumpdir" ]; then
    # shellcheck disable=SC2086  # options are split on purpose
    local/data.sh ${downloads:+--downloads "$downloads"} $data_opts
  fi
fi
data=${kaldi_data:-data}

if runs 2 "$no_perturb"; then
  data_tool perturb --data "$data/$train_set" --out "data/$train_data" --factors "$speed_perturb"
fi

if runs 3 "$no_format"; then
  for set in $train_data $valid_set $test_sets; do
    from=$data/$set
    limits=()
    [ "$set" != "$train_data" ] || limits=(--min-seconds "$min_wav_duration" --max-seconds "$max_wav_duration")
    [ -z "$speed_perturb" ] || [ "$set" != "$train_data" ] || from=data/$set
    data_tool format --data "$from" --dump "$dump/$set" --nj "$nj" "${limits[@]}"
  done
fi

tokens=data/tokens_$token_type$vocab_size
aligner_tokens=data/tokens_$aligner_token_type$aligner_vocab_size
make_tokens() {
  local out=$1
  shift
  python3 -m espnet_speechllm_xl.bin.tokens --text "$dump/$train_data/text" --out "$out" "$@"
}
if runs 4; then
  make_tokens "$tokens" --type "$token_type" --vocab-size "$vocab_size" ${hf_tokenizer:+--hf "$hf_tokenizer"}
  [ -n "$no_aligner" ] || make_tokens "$aligner_tokens" --type "$aligner_token_type" --vocab-size "$aligner_vocab_size"
fi

# train_model COMMAND CONFIG TOKENS OUT TRAIN VALID ALIGNMENT ARGS...: statistics, then training; ALIGNMENT is 1 or
# empty.
train_model() {
  local command=$1 config=$2 tokens=$3 out=$4 train=$5 valid=$6 with_alignment=$7 part dir files stamp
  shift 7
  local tokenizer=$tokens/tokenizer
  [ -d "$tokenizer" ] || tokenizer=$tokenizer.model
  local common=(--config "$config" --token_list "$tokens/tokens.txt" --tokenizer "$tokenizer" --ngpu "$ngpu")
  for part in train valid; do
    dir=$train
    [ "$part" = train ] || dir=$valid
    common+=("--${part}_data_path_and_name_and_type" "$dir/wav.scp,speech,sound"
      "--${part}_data_path_and_name_and_type" "$dir/text,text,text"
      "--${part}_data_path_and_name_and_type" "$dir/utt2spk,spk,text")
    [ -z "$with_alignment" ] \
      || common+=("--${part}_data_path_and_name_and_type" "$dir/char_ends,alignment,text")
  done
  files=("$train"/{wav.scp,text,utt2spk} "$valid"/{wav.scp,text,utt2spk})
  [ -z "$with_alignment" ] || files+=("$train/char_ends" "$valid/char_ends")
  stamp=$(find -L "${files[@]}" "$tokenizer" -type f -print0 | sort -z | xargs -0 cat | cksum)
  if [ "$(cat "$out/stats/.done" 2>/dev/null)" != "$stamp" ]; then
    [ ! -f "$out/checkpoint.pth" ] \
      || die "$out was trained on other data or tokens than there are now: give this training a name of its own" \
        "(--tag or --aligner-tag), or remove $out to train again"
    mkdir -p "$out"
    if [ -d "$tokenizer" ]; then cp -r "$tokenizer" "$out/"; else cp "$tokenizer" "$out/tokenizer.model"; fi
    log "statistics: $out/stats (log: $out/stats.log)"
    train_cmd 1 "$out/stats.log" \
      python3 -m espnet_speechllm_xl "$command" "${common[@]}" --collect_stats true --ngpu 0 --output_dir "$out/stats" "$@"
    echo "$stamp" >"$out/stats/.done"
  fi
  log "training: $out (log: $out/train.log; curves: tensorboard --logdir $out/tensorboard)"
  local distributed=()
  [ "$ngpu" -le 1 ] || distributed=(--multiprocessing_distributed true)
  train_cmd --gpus "$ngpu" --progress '^epoch [0-9]+/[0-9]+: ' 1 "$out/train.log" \
    python3 -m espnet_speechllm_xl "$command" "${common[@]}" --output_dir "$out" --resume true \
    --stats_file "$out/stats/train/feats_stats.npz" \
    --train_shape_file "$out/stats/train/speech_shape" --train_shape_file "$out/stats/train/text_shape" \
    --valid_shape_file "$out/stats/valid/speech_shape" --valid_shape_file "$out/stats/valid/text_shape" \
    "${distributed[@]}" "$@"
}

if runs 5 "$no_aligner"; then
  # shellcheck disable=SC2086
  train_model train-aligner "$aligner_config" "$aligner_tokens" "$aligner" "$dump/$train_data" "$dump/$valid_set" "" $aligner_args
fi

if runs 6; then
  [ "$alignment" != ctc ] || aligned=$aligner/aligned
  for set in $train_data $valid_set $test_sets; do
    case $alignment in
      ctc) by=(--model "$aligner" --nj "$nj" --device "$device") ;;
      ctm:ref) by=(--ctm "$dump/$set/ref.ctm") ;;
      ctm:*) by=(--ctm "${alignment#ctm:}/$set.ctm") ;;
      *) die "--alignment $alignment: give ctc, ctm:DIR or ctm:ref" ;;
    esac
    speechllm_xl align --dump "$dump/$set" --out "$aligned/$set" "${by[@]}"
    python3 -m espnet_speechllm_xl.bin.align_report --aligned "$aligned/$set" --dump "$dump/$set"
  done
fi
[ "$alignment" != ctc ] || aligned=$aligner/aligned

if runs 7; then
  start=()
  [ "$alignment" != ctc ] || start=(--init_param "$aligner/valid.ter.ave.pth:acoustic:acoustic")
  # shellcheck disable=SC2086
  train_model train "$train_config" "$tokens" "$model" "$aligned/$train_data" "$aligned/$valid_set" 1 "${start[@]}" $train_args
fi

# decode SET...: with every search
decode() {
  local set search
  for set in "$@"; do
    for search in $searches; do
      # shellcheck disable=SC2086
      speechllm_xl decode --model "$model" --dump "$dump/$set" --out "$model/decode_$search$decode_tag/$set" --nj "$nj" \
        --device "$device" --search "$search" --beam-size "$beam_size" $decode_args
    done
  done
}
score() {
  speechllm_xl score --exp "$expdir" --dump "$(dirname "$dump")" --results "$results" --command "$command"
}

if runs 8; then
  # shellcheck disable=SC2086
  decode $valid_set $test_sets
fi

if runs 9; then
  score
fi

if runs 10; then
  for set in $test_sets; do
    for factor in $longform_factors; do
      data_tool longform --dump "$dump/$set" --out "$dump/${set}_${factor}x" --factor "$factor" --across-speakers
      decode "${set}_${factor}x"
    done
  done
  score
fi

if runs 11; then
  speechllm_xl pack --model "$model" --out "$model.zip"
  if [ -f "$results" ]; then
    log "word error rates (all of it: $results)"
    sed -n '/^### WER/,/^### CER/p' "$results" | grep '^|' || true
  fi
  log "transcribe a file of your own with it:"
  echo "  $root/local/run.sh speechllm-xl transcribe FILE --model $PWD/$model.zip"
fi

if runs 12; then
  for set in $test_sets; do
    # shellcheck disable=SC2086
    speechllm_xl latency --model "$model" --dump "$dump/$set" --out "$model/latency$decode_tag/$set" --device "$device" \
      --beam-size "$beam_size" $latency_args
  done
fi
