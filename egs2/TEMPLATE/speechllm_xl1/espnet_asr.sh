# shellcheck shell=bash
# Baselines as ESPnet's users run them: how the driver trains and decodes the systems espnet_*, stock `asr` tasks on our
# dump and tokens. Scored as everything else. Source it after local/path.sh and local/cmd.sh.
# shellcheck disable=SC2154  # the driver's variables

espnet_scripts=$root/local/espnet
export PYTHONPATH=$espnet_scripts:$PYTHONPATH # stand-ins for modules that ESPnet imports, see there

# train_espnet ARGS...: ESPnet's token list, its statistics, its training.
train_espnet() {
  local tokenizer=$tokens/tokenizer.model inputs stamp asr_train part folder distributed=()
  inputs=({"$dump/$train_data","$dump/$valid_set"}/{wav.scp,text,utt2num_samples} "$tokenizer")
  need "run the stages before this one (from --stage 1 on)" "${inputs[@]}"
  lock "$model"
  stamp=$(checksum "${inputs[@]}")
  if [ -f "$model/checkpoint.pth" ] && [ "$(cat "$model/stats/.done" 2>/dev/null)" != "$stamp" ]; then
    die "$model was trained on other data or tokens than there are now: give this training a name of its own" \
      "(--tag), or remove $model to train again"
  fi
  cp "$tokenizer" "$model/tokenizer.model"
  # ESPnet's: blank first, sentence mark last, the pieces between in the tokenizer's order.
  { printf '%s\n' '<blank>' '<unk>'; grep -vxF '<unk>' "$tokens/tokens.txt"; echo '<sos/eos>'; } >"$model/tokens.txt.new"
  mv "$model/tokens.txt.new" "$model/tokens.txt"
  log "$model/tokens.txt: $(wc -l <"$model/tokens.txt") tokens"

  asr_train=(python3 "$espnet_scripts/asr_train.py" --config "$train_config" --token_type bpe
    --token_list "$model/tokens.txt" --bpemodel "$model/tokenizer.model" --use_preprocessor true)
  for part in train valid; do
    folder=$dump/$train_data
    [ "$part" = train ] || folder=$dump/$valid_set
    asr_train+=("--${part}_data_path_and_name_and_type" "$folder/wav.scp,speech,sound"
      "--${part}_data_path_and_name_and_type" "$folder/text,text,text")
  done
  if [ "$(cat "$model/stats/.done" 2>/dev/null)" = "$stamp" ]; then
    log "$model/stats was made before of the same data"
  else
    log "statistics: $model/stats (log: $model/stats.log)"
    train_cmd 1 "$model/stats.log" \
      "${asr_train[@]}" --collect_stats true --ngpu 0 --output_dir "$model/stats" "$@"
    echo "$stamp" >"$model/stats/.done"
  fi
  log "training: $model (log: $model/train.log; curves: tensorboard --logdir $model/tensorboard)"
  [ "$ngpu" -le 1 ] || distributed=(--multiprocessing_distributed true)
  train_cmd --gpus "$ngpu" --progress '^epoch [0-9]+/[0-9]+: ' 1 "$model/train.log" \
    "${asr_train[@]}" --output_dir "$model" --resume true --ngpu "$ngpu" \
    --normalize global_mvn --normalize_conf "stats_file=$model/stats/train/feats_stats.npz" \
    --train_shape_file "$model/stats/train/speech_shape" --valid_shape_file "$model/stats/valid/speech_shape" \
    "${distributed[@]}" "$@"
  unlock
  log "$(grep -h 'Total Number of model parameters' "$model"/train*.log | tail -n 1 | sed 's/^ *//')"
}

# averaged_weights: the mean of the best epochs by the one criterion of the training.
averaged_weights() {
  local found=("$model"/valid.*.ave.pth)
  [ -f "${found[0]}" ] || die "$model holds no valid.*.ave.pth: run the train stage"
  [ ${#found[@]} -eq 1 ] || die "$model holds averages of several criteria (${found[*]##*/}): keep one, as in conf/espnet"
  echo "${found[0]}"
}

# decode_espnet SEARCH SET: into decode_<search>/<set>, unless that was done before with the same weights and options.
decode_espnet() {
  local search=$1 set=$2 weights config out parts stamp jobs job program=asr_inference
  weights=$(averaged_weights) || exit 2
  config=$(conf "decode_${task}_$search.yaml" espnet) || exit 2
  out=$model/decode_$search$decode_tag/$set
  parts=$out/.parts
  need "run the stages before this one (from --stage 1 on)" "$dump/$set"/{wav.scp,utt2num_samples}
  stamp=$(checksum "$weights" "$config" "$dump/$set"/{wav.scp,utt2num_samples})\ $decode_args
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
  ! grep -q '^encoder: contextual_block' "$model/config.yaml" || program=asr_inference_streaming
  log "decoding: $out (logs: $out/log)"
  # shellcheck disable=SC2086  # options are split on purpose
  decode_cmd --gpus "$device_gpus" "$jobs" "$out/log/decode.@JOB@.log" \
    python3 "$espnet_scripts/asr_decode.py" "$program" --config "$config" --ngpu "$device_gpus" \
    --key_file "$parts/keys.@JOB@" --data_path_and_name_and_type "$dump/$set/wav.scp,speech,sound" \
    --output_dir "$parts/@JOB@" --asr_train_config "$model/config.yaml" --asr_model_file "$weights" $decode_args
  python3 "$espnet_scripts/asr_collect.py" --parts "$parts" --dump "$dump/$set" --out "$out" --device "$device" \
    --config "$config" --sample-rate "$sample_rate"
  rm -rf "$parts"
  echo "$stamp" >"$out/.done"
  unlock
}
