#!/usr/bin/env bash
# Baselines as ESPnet's users run them: stock `asr` tasks on our dump and tokens, scored as everything else. A corpus'
# run_espnet.sh calls it from the recipe's directory; a user's options come last and win.
#
#   ./run_espnet.sh --asr-config train_asr_ctc_tiny.yaml      all stages; the data stage does what run.sh has not done
#   ./run_espnet.sh --stage train --stop-stage decode         some stages, by name or number
#   ./run_espnet.sh --help                                    the stages and options with their values
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")") # through links
root=$(cd "$here/../../.." && pwd -P)

stages=(data tokens stats train decode score)

# options begin
stage=1               # first stage, number or name
stop_stage=score      # last stage
asr_config=train_asr_ctc_tiny.yaml # YAML of espnet2.bin.asr_train: a path, or a name in conf/espnet/ of the recipe or
                      # of the repository; train_asr_<system>_<size>.yaml
asr_args=             # further options of asr_train, e.g. "--max_epoch 20"
tag=                  # of the experiment (default: asr_<system>_<size>, and behind it, with other tokens than the
                      # recipe's own, as bpe500)
inference_configs=    # YAML files of espnet2.bin.asr_inference, used one after the other
                      # (default: all conf/espnet/decode_asr_<system>_<search>.yaml)
inference_args=       # further options of asr_inference, e.g. "--beam_size 4"
decode_tag=           # appended to decode_<search>
# options end

usage_name=run_espnet.sh
# shellcheck source=egs2/TEMPLATE/speechllm_xl1/options.sh
. "$here/options.sh"
read_options "$@"

asr_config=$(conf "$asr_config" espnet) || exit 2
name=$(basename "$asr_config" .yaml)
name=${name#train_}
tag=${tag:-$(experiment "$name" "$(tokens_name "$token_type" "$vocab_size")" "$own_tokens")}
check_names
system=${name%_*} # asr_ctc
model=$expdir/$tag
tokenizer=$tokens/tokenizer.model
[ "$token_type" != hf ] || die "--token-type hf: these baselines take sentencepiece tokens: give bpe, unigram or char"

# The searches of a system, those of the recipe in place of the repository's of the same name.
if [ -z "$inference_configs" ]; then
  inference_configs=$(cd "$root" && printf '%s\n' conf/espnet/decode_"$system"_*.yaml)
  inference_configs=$(for file in $inference_configs; do basename "$file"; done)
fi

for config in $inference_configs; do conf "$config" espnet >/dev/null || exit 2; done

# shellcheck source=local/install.sh
"$root/local/install.sh"
# shellcheck source=local/path.sh
. "$root/local/path.sh"
# shellcheck source=local/cmd.sh
. "$root/local/cmd.sh"
espnet=$root/local/espnet
export PYTHONPATH=$espnet:$PYTHONPATH # stand-ins for modules that ESPnet imports, see there

if runs 1; then
  forwarded=()
  while read -r option; do
    option=${option%%=*}
    forwarded+=("--${option//_/-}" "${!option}")
  done < <(option_lines "$here/options.sh")
  "$here/speechllm_xl.sh" "${forwarded[@]}" --system ctc --stage data --stop-stage tokens
fi

no_data="run the data stage (--stage data), or ./run.sh --stop-stage tokens"
if [ "$stage" -le 4 ]; then
  need "$no_data" {"$dump/$train_data","$dump/$valid_set"}/{wav.scp,text,utt2num_samples} "$tokenizer"
  stamp=$(checksum {"$dump/$train_data","$dump/$valid_set"}/{wav.scp,text,utt2num_samples} "$tokenizer")
  if [ -f "$model/checkpoint.pth" ] && [ "$(cat "$model/stats/.done" 2>/dev/null)" != "$stamp" ]; then
    die "$model was trained on other data or tokens than there are now: give this training a name of its own" \
      "(--tag), or remove $model to train again"
  fi
fi

if runs 2; then
  mkdir -p "$model"
  cp "$tokenizer" "$model/tokenizer.model"
  # ESPnet's: blank first, sentence mark last, the pieces between in the tokenizer's order.
  { printf '%s\n' '<blank>' '<unk>'; grep -vxF '<unk>' "$tokens/tokens.txt"; echo '<sos/eos>'; } >"$model/tokens.txt.new"
  mv "$model/tokens.txt.new" "$model/tokens.txt"
  log "$model/tokens.txt: $(wc -l <"$model/tokens.txt") tokens"
fi

# asr_train ARGS...: with the options that statistics and training have in common.
asr_train=(python3 "$espnet/asr_train.py" --config "$asr_config" --token_type bpe --token_list "$model/tokens.txt"
  --bpemodel "$model/tokenizer.model" --use_preprocessor true)
for part in train valid; do
  folder=$dump/$train_data
  [ "$part" = train ] || folder=$dump/$valid_set
  asr_train+=("--${part}_data_path_and_name_and_type" "$folder/wav.scp,speech,sound"
    "--${part}_data_path_and_name_and_type" "$folder/text,text,text")
done

if runs 3; then
  lock "$model"
  if [ "$(cat "$model/stats/.done" 2>/dev/null)" = "$stamp" ]; then
    log "$model/stats was made before of the same data"
  else
    log "statistics: $model/stats (log: $model/stats.log)"
    # shellcheck disable=SC2086  # options are split on purpose
    train_cmd 1 "$model/stats.log" \
      "${asr_train[@]}" --collect_stats true --ngpu 0 --output_dir "$model/stats" $asr_args
    echo "$stamp" >"$model/stats/.done"
  fi
  unlock
fi

if runs 4; then
  lock "$model"
  log "training: $model (log: $model/train.log; curves: tensorboard --logdir $model/tensorboard)"
  distributed=()
  [ "$ngpu" -le 1 ] || distributed=(--multiprocessing_distributed true)
  # shellcheck disable=SC2086
  train_cmd --gpus "$ngpu" --progress '^epoch [0-9]+/[0-9]+: ' 1 "$model/train.log" \
    "${asr_train[@]}" --output_dir "$model" --resume true --ngpu "$ngpu" \
    --normalize global_mvn --normalize_conf "stats_file=$model/stats/train/feats_stats.npz" \
    --train_shape_file "$model/stats/train/speech_shape" --valid_shape_file "$model/stats/valid/speech_shape" \
    "${distributed[@]}" $asr_args
  unlock
  log "$(grep -h 'Total Number of model parameters' "$model"/train*.log | tail -n 1 | sed 's/^ *//')"
fi
if [ "$stage" -le 5 ] && [ "$stop_stage" -ge 4 ]; then doubts "$model"; fi

# averaged_weights: the mean of the best epochs by the one criterion of the training.
averaged_weights() {
  local found=("$model"/valid.*.ave.pth)
  [ -f "${found[0]}" ] || die "$model holds no valid.*.ave.pth: run the train stage"
  [ ${#found[@]} -eq 1 ] || die "$model holds averages of several criteria (${found[*]##*/}): keep one, as in conf/espnet"
  echo "${found[0]}"
}

# decode CONFIG SET: into decode_<search>/<set>, unless that was done before with the same weights and options.
decode() {
  local config set=$2 search out program=asr_inference stamp parts jobs job gpus=0
  config=$(conf "$1" espnet) || exit 2
  search=$(basename "$config" .yaml)
  search=${search#decode_"$system"_}
  out=$model/decode_$search$decode_tag/$set
  parts=$out/.parts
  need "$no_data" "$dump/$set"/{wav.scp,utt2num_samples}
  stamp=$(checksum "$weights" "$config" "$dump/$set"/{wav.scp,utt2num_samples})\ $inference_args
  lock "$(dirname "$out")"
  if [ -f "$out/decode.json" ] && [ "$(cat "$out/.done" 2>/dev/null)" = "$stamp" ]; then
    unlock
    touch "$out/decode.json" # of weights that may have been written again, equal
    log "$out was decoded before by the same weights and settings"
    return
  fi
  rm -rf "$out"/{.done,text,token,token_int,score,decode.json} "$parts"
  mkdir -p "$parts" "$out/log"
  jobs=$(grep -c '' "$dump/$set/wav.scp") # also a last line without an end
  [ "$jobs" -le "$nj" ] || jobs=$nj
  for ((job = 1; job <= jobs; job++)); do
    awk -v jobs="$jobs" -v job="$job" 'NR % jobs == job % jobs' "$dump/$set/wav.scp" >"$parts/keys.$job"
  done
  [ "$device" = cpu ] || gpus=1
  ! grep -q '^encoder: contextual_block' "$model/config.yaml" || program=asr_inference_streaming
  log "decoding: $out (logs: $out/log)"
  # shellcheck disable=SC2086
  decode_cmd --gpus "$gpus" "$jobs" "$out/log/decode.@JOB@.log" \
    python3 "$espnet/asr_decode.py" "$program" --config "$config" --ngpu "$gpus" --key_file "$parts/keys.@JOB@" \
    --data_path_and_name_and_type "$dump/$set/wav.scp,speech,sound" --output_dir "$parts/@JOB@" \
    --asr_train_config "$model/config.yaml" --asr_model_file "$weights" $inference_args
  python3 "$espnet/asr_collect.py" --parts "$parts" --dump "$dump/$set" --out "$out" --device "$device" --config "$config" \
    --sample-rate "$sample_rate"
  rm -rf "$parts"
  echo "$stamp" >"$out/.done"
  unlock
}

if runs 5; then
  weights=$(averaged_weights) || exit 2
  for set in $valid_set $test_sets; do
    for config in $inference_configs; do
      decode "$config" "$set"
    done
  done
fi

if runs 6; then
  score
fi

finish
