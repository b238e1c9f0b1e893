#!/usr/bin/env bash
# The driver of every recipe: from audio to RESULTS.md in stages.  A corpus' run.sh sets the variables below by options
# (--name value) and calls it from the recipe's directory; a user's options come last, behind an argument --, and win.
#
#   ./run.sh                                everything but the latency stage, which streams all test sets
#   ./run.sh --system ctc                   another system on the same data; systems.sh holds them
#   ./run.sh --stage 5 --stop-stage 6       some stages; names work too: --stage aligner --stop-stage align
#   ./run.sh --help                         the stages and options with their values
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")") # through links
root=$(cd "$here/../../.." && pwd -P)

stages=(data perturb format tokens aligner align train decode score longform pack latency)

# options begin
stage=1               # first stage, number or name
stop_stage=pack       # last stage; latency comes after it: --stage latency --stop-stage latency
system=speechllm_xl   # one of the systems above; those that begin with espnet_ are stock ESPnet's
size=tiny             # of the system: what its training configuration has in its name, train_<size>_multichunk.yaml,
                      # train_<size>.yaml or train_<system>_<size>.yaml
aligner_token_type=char # of the aligner: char, bpe or unigram; CTC learns characters much sooner than pieces
aligner_vocab_size=100  # tokens (bpe, unigram)
llm=                  # of --system llm: Hugging Face directory of a language model (default: $SPEECHLLM_XL_LLM, else
                      # downloads/SmolLM2-135M, which the tokens stage fetches by speechllm-xl llm fetch smollm2)
alignment=ctc         # ctc, or ctm:DIR with DIR/<set>.ctm (word times, seconds), or ctm:ref for the data's own ref.ctm
align_args=           # further options of speechllm-xl align, e.g. "--silences <eps>,SIL" for entries of a CTM
aligner_config=       # YAML of the aligner (default: that of the recogniser with train_aligner_ in its name)
corpus_aligner_args=  # ESPnet options of the aligner on this corpus, for the recipe's run.sh
aligner_args=         # further ESPnet options, e.g. "--max_epoch 20"
aligner_tag=          # of the experiment (default: aligner, of several chunk sizes aligner_multichunk; with other tokens
                      # than the recipe's own, their name behind it)
align_sets=           # to be aligned beside the training and the validation set, e.g. "test"
train_config=         # another YAML of the recogniser: a path, or a name in conf/ of the recipe or of the repository
                      # (of stock ESPnet: conf/espnet/)
init=                 # encoder weights to start from: aligner, none, or a model in exp/ (default: the aligner's, where there
                      # is one, of transducer ctc_<size>); an encoder of another depth takes the layers that both have
corpus_args=          # ESPnet options of our systems' training on this corpus, for the recipe's run.sh
corpus_multichunk_args= # and more of them for several chunk sizes
train_args=           # further ESPnet options
tag=                  # of the experiment (default: the system and its size, and behind them, with other tokens than the
                      # recipe's own, as bpe500)
searches=             # decoded one after the other (default: "greedy alsd", of ctc "greedy prefix_beam", of transducer
                      # "greedy default alsd", of stock ESPnet conf/espnet/decode_asr_<system>_<search>.yaml);
                      # alsd_ctc0.3 is alsd with --ctc-weight 0.3
corpus_searches=      # beside speechllm_xl's default ones, for the recipe's run.sh
beam_size=8           # of stock ESPnet: as the YAML of the search has it
decode_args=          # further options of speechllm-xl decode, e.g. "--chunk-size 0.64", or of ESPnet's asr_inference
decode_tag=           # appended to decode_<search>
longform_factors="2 10"
longform_ways=across  # how utterances are joined: across, speaker, shuffled (local/longform.sh)
pack_args=            # further options of speechllm-xl pack, e.g. --with-llm for the weights of a language model
latency_args=         # further options of speechllm-xl latency, e.g. "--chunk-sizes 0.64,1.28 --search greedy"
# options end

usage_name=run.sh
# shellcheck source=egs2/TEMPLATE/speechllm_xl1/options.sh
. "$here/options.sh"
# shellcheck source=egs2/TEMPLATE/speechllm_xl1/systems.sh
. "$here/systems.sh"
read_options "$@"

choose_system
[ -z "$llm" ] || [ -n "$pretrained" ] || die "--llm $llm: $system takes none: give --system llm"
searches=${searches:-$default_searches}
for search in $searches; do
  plain=$search
  [ -z "$needs_alignment" ] || [[ ! $search =~ ^(.+)_ctc[0-9.]+$ ]] || plain=${BASH_REMATCH[1]}
  [[ " $known_searches " = *" $plain "* ]] || die "--searches: $system has $known_searches, not '$search'"
done
[[ $alignment = ctc || $alignment = ctm:?* ]] || die "--alignment $alignment: give ctc, ctm:DIR or ctm:ref"
train_config=$(conf "$train_config" "${espnet:+espnet}") || exit 2
tag=${tag:-$(experiment "${model_name}_$size" "$(tokens_name "$token_type" "$vocab_size")" "$own_tokens")}
aligner_tag=${aligner_tag:-$(experiment "$aligner_name" "$(tokens_name "$aligner_token_type" "$aligner_vocab_size")" \
  "$own_aligner_tokens")}
check_names
device_gpus=0 # for a job of aligning or decoding
[ "$device" = cpu ] || device_gpus=1

# shellcheck source=local/install.sh
"$root/local/install.sh"
# shellcheck source=local/path.sh
. "$root/local/path.sh"
# shellcheck source=local/cmd.sh
. "$root/local/cmd.sh"
if [ -n "$espnet" ]; then
  # shellcheck source=egs2/TEMPLATE/speechllm_xl1/espnet_asr.sh
  . "$here/espnet_asr.sh"
fi

data_tool() { python3 -m espnet_speechllm_xl data "$@"; }
speechllm_xl() { python3 -m espnet_speechllm_xl "$@"; }

no_perturb='' no_format='' no_aligner=''
[ -n "$speed_perturb" ] || no_perturb="no --speed-perturb"
[ -z "$dumpdir" ] || [ -n "$kaldi_data" ] || { no_format="--dumpdir $dumpdir" no_perturb=$no_format; }
[ -z "${cleaner#none}" ] || [ -z "$no_format" ] \
  || die "--cleaner $cleaner: the texts of $no_format are taken as they are: give --kaldi-data, too, to format them"
[ "$text" = as-is ] || [ -z "$no_format" ] \
  || die "--text $text: the texts of $no_format are taken as they are: give --kaldi-data, too, to format them"
heard=text # by the aligner
[ "$text" != written ] || heard=text_spoken
[ "$alignment" = ctc ] || no_aligner="--alignment $alignment"
if [ -z "$init" ]; then
  init=$starts_from
  [ "$init" != aligner ] || [ -z "$no_aligner" ] || init=none
fi
no_align=''
if [ -z "$needs_alignment" ]; then
  no_align="--system $system"
  [ "$init" = aligner ] || no_aligner=$no_align
fi
no_espnet=${espnet:+--system $system} # of the stages that stock ESPnet does not have
if [ -z "$no_aligner" ]; then
  aligner_config=$(conf "${aligner_config:-train_aligner_$size.yaml}" "" "give the aligner's by --aligner-config") || exit 2
fi
# The auxiliary CTC of a decoder with an LLM's tokens has the aligner's characters, unless the options say otherwise.
[ "$token_type:$aligner_token_type" = hf:char ] && [[ "$corpus_args $train_args" != *ctc_tokenizer=* ]] \
  || ctc_characters=''
aligner=$expdir/$aligner_tag
model=$expdir/$tag
aligned=$model/aligned

# Recipes side by side want the same data.
[ "$stage" -gt 4 ] || lock data

# check_set OPTION SET DIR [OPTION...]: status 2 when there is no such set; only test sets may lack a text.
check_set() {
  local there optional=()
  if [ ! -d "$3/$2" ]; then
    there=$(compgen -G "$3/*/wav.scp" | sed 's,/wav\.scp$,,; s,.*/,,' | sort | paste -s -d ' ' || true)
    printf '%s: error: %s %s: there is no %s; %s has: %s\n' "${0##*/}" "$1" "$2" "$3/$2" "$3" "${there:-no set}" >&2
    return 2
  fi
  if [ "$1" = --test-sets ] && lacks_text "$3/$2"; then
    optional=(--no-text-ok)
    log "$3/$2 has no text: it is decoded, not scored"
  fi
  data_tool check "$3/$2" "${optional[@]}" "${@:4}"
}

# check_sets DIR TRAIN [OPTION...]: all sets, so that one run tells all that is wrong.
check_sets() {
  local pairs=(--train-set "$2" --valid-set "$valid_set") set i worst=0
  for set in $test_sets; do pairs+=(--test-sets "$set"); done
  for ((i = 0; i < ${#pairs[@]}; i += 2)); do
    check_set "${pairs[@]:i:2}" "$1" "${@:3}" || worst=$(($? > worst ? $? : worst))
  done
  return "$worst"
}

if runs 1; then
  if [ -n "$kaldi_data" ]; then
    check_sets "$kaldi_data" "$train_set"
  elif [ -n "$dumpdir" ]; then
    check_sets "$dump" "$train_data" --dump --sample-rate "$sample_rate"
  else
    # shellcheck disable=SC2086  # options are split on purpose
    OMP_NUM_THREADS=1 python3 local/data.py ${downloads:+--downloads "$downloads"} $data_opts
  fi
fi
data=${kaldi_data:-data}

if runs 2 "$no_perturb"; then
  data_tool perturb --data "$data/$train_set" --out "data/$train_data" --factors "$speed_perturb"
fi

if runs 3 "$no_format"; then
  worst=0
  for set in $train_data $valid_set $test_sets; do
    from=$data/$set
    settings=(--sample-rate "$sample_rate" --cleaner "$cleaner" --nlsyms "$nlsyms" --text "$text")
    [ "$set" != "$train_data" ] || settings+=(--min-seconds "$min_wav_duration" --max-seconds "$max_wav_duration")
    [ -z "$speed_perturb" ] || [ "$set" != "$train_data" ] || from=data/$set
    if [[ " $test_sets " = *" $set "* ]] && lacks_text "$from"; then settings+=(--no-text-ok); fi
    if pooled_cmd "$nj" "$(dirname "$dump")/log/format_$set.log" \
      python3 -m espnet_speechllm_xl data format --data "$from" --dump "$dump/$set" "${settings[@]}"; then
      [ ! -s "$dump/$set/failed" ] || left_out format "$dump/$set/failed" ''
    else
      worst=1 # the others are formatted, so that one run tells all that is wrong
    fi
  done
  [ "$worst" -eq 0 ] || exit 1
fi

aligner_tokens=$(tokens_dir "$aligner_token_type" "$aligner_vocab_size")${heard#text}
make_tokens() { # DIR TABLE [OPTION...]: of the texts in TABLE
  local out=$1 table=$2 set others=()
  shift 2
  for set in $valid_set $test_sets; do others+=("$dump/$set/$table"); done
  python3 -m espnet_speechllm_xl tokens --text "$dump/$train_data/$table" --out "$out" --nlsyms "$nlsyms" \
    --others "${others[@]}" "$@"
}
if runs 4; then
  if [ "$pretrained" = "$fetched_llm" ] && [ ! -f "$pretrained/config.json" ]; then
    log "no language model in $pretrained: it is fetched (SmolLM2-135M-Instruct, 93 MB); --llm DIR takes another one"
    speechllm_xl llm fetch smollm2 --out "$pretrained"
  fi
  settings=(--type "$token_type" --vocab-size "$vocab_size" ${hf_tokenizer:+--hf "$hf_tokenizer"})
  [ "$token_type" != hf ] || [ "$hf_letters" = as-is ] || settings+=(--lower-case)
  make_tokens "$tokens" text "${settings[@]}"
  if [ -z "$no_aligner" ] || [ -n "$ctc_characters" ]; then
    make_tokens "$aligner_tokens" "$heard" --type "$aligner_token_type" --vocab-size "$aligner_vocab_size" --rare 0
  fi
fi
unlock

# train_model COMMAND CONFIG TOKENS OUT TRAIN VALID ALIGNMENT ARGS...: statistics, then training; ALIGNMENT is 1 or
# empty.
train_model() {
  local command=$1 config=$2 tokens=$3 out=$4 train=$5 valid=$6 with_alignment=$7 part dir files stamp table=text
  shift 7
  local tokenizer=$tokens/tokenizer
  [ -d "$tokenizer" ] || tokenizer=$tokenizer.model
  [ "$command" != train-aligner ] || table=$heard
  local common=(--config "$config" --token_list "$tokens/tokens.txt" --tokenizer "$tokenizer" --ngpu "$ngpu")
  for part in train valid; do
    dir=$train
    [ "$part" = train ] || dir=$valid
    common+=("--${part}_data_path_and_name_and_type" "$dir/wav.scp,speech,sound"
      "--${part}_data_path_and_name_and_type" "$dir/$table,text,text"
      "--${part}_data_path_and_name_and_type" "$dir/utt2spk,spk,text")
    [ -z "$with_alignment" ] \
      || common+=("--${part}_data_path_and_name_and_type" "$dir/char_ends,alignment,text")
  done
  files=({"$train","$valid"}/{wav.scp,"$table",utt2spk,utt2num_samples})
  [ -z "$with_alignment" ] || files+=("$train/char_ends" "$valid/char_ends")
  need "run the stages before this one (from --stage 1 on)" "${files[@]}" "$tokens/tokens.txt"
  lock "$out"
  stamp=$(checksum "${files[@]}" "$tokenizer")
  if [ "$(cat "$out/stats/.done" 2>/dev/null)" != "$stamp" ]; then
    [ ! -f "$out/checkpoint.pth" ] \
      || die "$out was trained on other data or tokens than there are now: give this training a name of its own" \
        "(--tag or --aligner-tag), or remove $out to train again"
    mkdir -p "$out"
    rm -rf "$out/tokenizer"
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
  unlock
}

if runs 5 "$no_aligner"; then
  # shellcheck disable=SC2086
  train_model train-aligner "$aligner_config" "$aligner_tokens" "$aligner" "$dump/$train_data" "$dump/$valid_set" "" \
    $corpus_aligner_args $aligner_args
fi
if [ "$stage" -le 5 ] && [ "$stop_stage" -ge 5 ] && [ -z "$no_aligner" ]; then
  if [ "$stop_stage" = 5 ] || [ -n "$no_align" ]; then doubts "$aligner"; fi # stage 6 says it itself
fi

if runs 6 "$no_align"; then
  [ "$alignment" != ctc ] || aligned=$aligner/aligned
  lock "$aligned"
  for set in $train_data $valid_set $align_sets; do
    if lacks_text "$dump/$set"; then
      log "$dump/$set has no text: it is not aligned"
      continue
    fi
    case $alignment in
      ctc) by=(--model "$aligner" --device "$device") ;;
      ctm:ref) by=(--ctm "$dump/$set/ref.ctm") ;;
      ctm:*) by=(--ctm "${alignment#ctm:}/$set.ctm") ;;
    esac
    # shellcheck disable=SC2206 # words on purpose
    by+=($align_args)
    if [ "$alignment" = ctc ]; then
      tolerate align "$aligned/$set/failed" ' unusable audio' \
        sharded_cmd --gpus "$device_gpus" "$nj" "$aligner/log/align_$set.@JOB@.log" \
        python3 -m espnet_speechllm_xl align --dump "$dump/$set" --out "$aligned/$set" "${by[@]}"
    else
      speechllm_xl align --dump "$dump/$set" --out "$aligned/$set" "${by[@]}"
    fi
    python3 -m espnet_speechllm_xl align-report --aligned "$aligned/$set" --dump "$dump/$set" \
      --training "$train_config" --training-args="$corpus_args $system_args $train_args"
  done
  unlock
fi
[ "$alignment" != ctc ] || aligned=$aligner/aligned

# has_ctc YAML OPTIONS: whether a training has an auxiliary CTC loss.
has_ctc() {
  python3 -c 'from sys import argv, exit
from espnet_speechllm_xl.experiment import planned_ctc_weight
exit(not planned_ctc_weight(*argv[1:]))' "$@"
}

if runs 7; then
  start=(--task "$task") parts=()
  case $init in
    aligner) weights=$aligner/valid.ter.ave.pth ;;
    none) weights='' ;;
    *)
      # that of the same tokens first, as tag has them in its name
      weights=$({ compgen -G "$expdir/${init}_$(tokens_name "$token_type" "$vocab_size")/valid.*.ave.pth" \
        || compgen -G "$expdir/$init/valid.*.ave.pth"; } | head -n 1) \
        || die "--init $init: give aligner, none, or a model that is in $expdir, after its training"
      ;;
  esac
  [ -z "$weights" ] || parts=("$weights:acoustic:acoustic")
  if [ -n "$ctc_characters" ] && has_ctc "$train_config" "$corpus_args $system_args $train_args"; then
    start+=(--loss_conf "ctc_tokenizer=$aligner_tokens/tokenizer.model")
    [ "$init" != aligner ] || parts+=("$weights:ctc:ctc")
  fi
  [ ${#parts[@]} -eq 0 ] || start+=(--init_param "${parts[@]}")
  # The encoders of these systems have more layers than the aligner's.
  [ -z "$weights" ] || [ -n "$needs_alignment" ] || start+=(--ignore_init_mismatch true)
  from=$dump
  [ -z "$needs_alignment" ] || from=$aligned
  # shellcheck disable=SC2086
  if [ -n "$espnet" ]; then
    train_espnet $train_args
  else
    train_model train "$train_config" "$tokens" "$model" "$from/$train_data" "$from/$valid_set" "$needs_alignment" \
      "${start[@]}" $corpus_args $system_args $train_args
  fi
fi
if [ "$stage" -le 8 ] && [ "$stop_stage" -ge 7 ]; then doubts "$model"; fi

# decode SET...: with every search
decode() {
  local set search joint out segments
  for set in "$@"; do
    segments=()
    [ ! -f "$data/$set/segments" ] || segments=(--segments "$data/$set/segments")
    for search in $searches; do
      if [ -n "$espnet" ]; then decode_espnet "$search" "$set"; continue; fi
      joint=(--ctc-weight 0)
      [[ $search != *_ctc* ]] || joint=(--ctc-weight "${search##*_ctc}")
      out=$model/decode_$search$decode_tag/$set
      lock "$(dirname "$out")"
      # shellcheck disable=SC2086
      tolerate decode "$out/failed" '' \
        sharded_cmd --gpus "$device_gpus" "$nj" "$model/log/decode_$search${decode_tag}_$set.@JOB@.log" \
        python3 -m espnet_speechllm_xl decode --model "$model" --dump "$dump/$set" --out "$out" --device "$device" \
        --search "${search%_ctc*}" --beam-size "$beam_size" "${joint[@]}" "${segments[@]}" $decode_args
      unlock
    done
  done
}
if runs 8; then
  # shellcheck disable=SC2086
  decode $valid_set $test_sets
fi

if runs 9; then
  score
fi

if runs 10 "$no_espnet"; then
  for set in $test_sets; do
    joined=$("$root/local/longform.sh" --dump "$dump/$set" --factors "$longform_factors" --ways "$longform_ways" --nj "$nj" \
      --sample-rate "$sample_rate")
    # shellcheck disable=SC2086
    decode $joined
  done
  score
fi

if runs 11 "$no_espnet"; then
  # shellcheck disable=SC2086
  speechllm_xl pack --model "$model" --out "$model.zip" $pack_args
  if [ -f "$results" ]; then
    log "error rates (all of it: $results)"
    awk '/^## / { first = 1 } /^### / { shown = first && /^### [WC]ER$/; first = 0; if (shown) print $2 } shown && /^\|/' "$results"
  fi
  log "transcribe a file of your own with it:"
  printf '  %q speechllm-xl transcribe FILE --model %q\n' "$root/local/run.sh" "$(realpath "$model.zip")"
fi

if runs 12 "$no_espnet"; then
  for set in $test_sets; do
    out=$model/latency$decode_tag/$set
    if lacks_text "$dump/$set"; then
      log "$dump/$set has no text: its words have no latency"
      continue
    fi
    # shellcheck disable=SC2086
    tolerate latency "$out/failed" '' \
      speechllm_xl latency --model "$model" --dump "$dump/$set" --out "$out" \
      --device "$device" --beam-size "$beam_size" $latency_args
  done
fi

finish
