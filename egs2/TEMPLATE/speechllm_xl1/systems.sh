# shellcheck shell=bash
# The systems of ./run.sh --system NAME: a function system_NAME each.  It calls `trains` and sets, where they differ from
# choose_system's:
#
#   model_name        of its experiments, exp/<model_name>_<size>
#   aligner_name      of its aligner, exp/<aligner_name>
#   system_args       ESPnet options that make the system of its configuration
#   needs_alignment   1: it trains on audio whose text is aligned
#   starts_from       the encoder that its training begins with, as --init has it
#   pretrained        directory of the LLM that it trains
#   ctc_characters    1: its auxiliary CTC can have characters where the decoder has an LLM's tokens
#   default_searches  what decodes where --searches names none
#   known_searches    all that can decode
#   espnet            1: stock ESPnet trains and decodes (espnet_asr.sh)
#
# shellcheck disable=SC2034,SC2154  # set for the driver, which sources this file

# choose_system: sets all of these for $system.
choose_system() {
  local all
  all=$(list_systems)
  [[ " $all " = *" $system "* ]] || die "--system $system: there are ${all// /, }"
  model_name=$system aligner_name=aligner system_args='' needs_alignment='' starts_from=none ctc_characters='' espnet=''
  pretrained=''
  "system_$system"
}

# list_systems: their names in the order of this file.
list_systems() { sed -n 's/^system_\([a-z0-9_]*\)().*/\1/p' "${BASH_SOURCE[0]}" | paste -s -d ' ' -; }

# trains TASK PREFIX: the task of the training and its configuration, <PREFIX><size>.yaml unless --train-config names
# one; the size is then what stands there in its name.
trains() {
  task=$1
  train_config=${train_config:-$2$size.yaml}
  size=$(basename "$train_config" .yaml)
  size=${size#"$2"}
}

# chunkwise TASK PREFIX: writes text chunk by chunk, which it learns from an alignment.
chunkwise() {
  trains "$@"
  needs_alignment=1 starts_from=aligner ctc_characters=1
  default_searches="greedy alsd" known_searches="greedy alsd chunk_sync"
}

# Trained for several chunk sizes where the size has such a configuration, train_<size>_multichunk.yaml.  Its segments are
# shorter, and so are those of its aligner.
system_speechllm_xl() {
  local several=train_${size}_multichunk.yaml
  if [ -z "$train_config" ] && has_conf "$several"; then train_config=$several; fi
  chunkwise speechllm_xl train_
  default_searches+=" $corpus_searches"
  if [[ $size = *_multichunk ]]; then
    aligner_name=aligner_multichunk
    corpus_args+=" $corpus_multichunk_args"
  fi
}

# One chunk size, as in the paper.
system_fixed_chunk() {
  chunkwise speechllm_xl train_
  model_name=speechllm_xl
  default_searches+=" $corpus_searches"
}

# One chunk holds all audio and all text.
system_nonstreaming() {
  chunkwise speechllm_xl train_
  system_args="--chunking_conf chunk=null --chunking_conf context=null --concat_conf max_lead_seconds=0"
  system_args+=" --search_conf max_tokens_per_chunk=1000"
}

# The encoder sees the whole utterance, too.
system_nonstreaming_full() {
  system_nonstreaming
  system_args+=" --encoder_conf segment=null --encoder_conf left_context=0 --encoder_conf right_context=0"
}

# Chunks of 240 ms and unbounded context; the encoder hands out five chunks at a time.
system_reallm() {
  chunkwise speechllm_xl train_
  system_args="--chunking_conf chunk=6 --chunking_conf context=null --encoder_conf segment=30"
  system_args+=" --encoder_conf left_context=30"
}

system_chunked_aed() { chunkwise chunked_aed train_chunked_aed_; }

# SpeechLLM-XL whose decoder is a pretrained LLM.  The default one is fetched by the tokens stage.
fetched_llm=downloads/SmolLM2-135M
system_llm() {
  chunkwise speechllm_xl train_llm_
  default_searches+=" $corpus_searches"
  pretrained=${llm:-${SPEECHLLM_XL_LLM:-$fetched_llm}}
  [[ $pretrained != *[[:space:]]* ]] || die "--llm '$pretrained': give a path without blanks"
  [ "$pretrained" = "$fetched_llm" ] || [ -f "$pretrained/config.json" ] \
    || die "--llm $pretrained: there is no Hugging Face directory of a language model (config.json and weights)"
  system_args="--decoder_conf pretrained=$pretrained"
  token_type=hf
  hf_tokenizer=${hf_tokenizer:-$pretrained}
  tokens=$(tokens_dir hf "")
  own_tokens=$(hf_name "$fetched_llm")
}

# What CTC hears are the prompts of the decoder.
system_ctc_prompt_lm() {
  chunkwise ctc_prompt_lm train_ctc_prompt_lm_
  ctc_characters=''
}

# On the hundreds of hours that the paper's size is for, it learns from random weights.
system_ctc() {
  trains ctc train_ctc_
  [ "$size" = paper ] || starts_from=aligner
  default_searches="greedy prefix_beam" known_searches=$default_searches
}

# It starts from the encoder of CTC: from random weights, on little speech, the prediction network memorises the
# transcripts before the encoder is of any use.
system_transducer() {
  trains transducer train_transducer_
  starts_from=ctc_$size
  default_searches="greedy default alsd" known_searches="$default_searches tsd nsc maes"
}

# stock_espnet NAME: an `asr` task of ESPnet's own, with configurations in conf/espnet/. Its searches are the files
# decode_asr_NAME_<search>.yaml there; the recipe's own conf/espnet/ may have more.
stock_espnet() {
  trains "asr_$1" "train_asr_$1_"
  model_name=$task espnet=1
  default_searches=$(espnet_searches "$root/conf/espnet")
  known_searches=$(espnet_searches "$root/conf/espnet" conf/espnet)
  [ "$token_type" != hf ] || die "--token-type hf: $system takes sentencepiece tokens: give bpe, unigram or char"
  [ "${init:-none}" = none ] || die "--init $init: $system has ESPnet's own option, --train-args \"--init_param FILE\""
}

# espnet_searches DIR...: the searches that there are for $task.
espnet_searches() {
  local dir file
  for dir in "$@"; do
    for file in "$dir/decode_${task}_"*.yaml; do
      [ ! -f "$file" ] || basename "${file##*/"decode_${task}_"}" .yaml
    done
  done | sort -u | paste -s -d ' ' -
}

system_espnet_ctc() { stock_espnet ctc; }
system_espnet_transducer() { stock_espnet transducer; }
system_espnet_las() { stock_espnet las; }
system_espnet_contextual_block_conformer() { stock_espnet contextual_block_conformer; }
