#!/usr/bin/env bash
# The whole recipe at toy scale, in a temporary copy: every stage, again from the start, and with reference alignments.
#   tests/toy_recipe.sh [DIRECTORY]     DIRECTORY keeps the result; without it everything is removed at the end
set -uo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=local/path.sh
. "$repo/local/path.sh" || exit 1
export OMP_NUM_THREADS=1

work=${1:-}
if [ -z "$work" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work/egs2/mini_espeak/speechllm_xl1" || exit 1
work=$(cd "$work" && pwd -P)
cp -r "$repo/egs2/mini_espeak/speechllm_xl1/"{run.sh,local} "$work/egs2/mini_espeak/speechllm_xl1/"
ln -sfn "$repo/egs2/TEMPLATE" "$work/egs2/TEMPLATE" # the driver follows the link to the repository and its environment
cp "$repo/.gitignore" "$work/"
cd "$work/egs2/mini_espeak/speechllm_xl1" || exit 1

passed=0
failed=0
check() { # NAME COMMAND...
  local name=$1 start=$SECONDS
  shift
  if "$@"; then
    echo "ok: $name ($((SECONDS - start)) s)"
    passed=$((passed + 1))
  else
    echo "FAILED: $name ($((SECONDS - start)) s)"
    failed=$((failed + 1))
  fi
}

summary() {
  echo "$passed passed, $failed failed"
  [ "$failed" = 0 ]
}

# run LOG OPTION...: the recipe with a micro model; the end of the log is shown when it fails.
run() {
  local log=$work/$1.log
  shift
  if ! ./run.sh --data-opts "--size tiny --nj 1" --vocab-size 60 --nj 1 --beam-size 2 --longform-factors 2 \
    --train-config "$repo/tests/conf/train_micro.yaml" --aligner-config "$repo/tests/conf/train_aligner_micro.yaml" \
    "$@" >"$log" 2>&1; then
    tail -n 30 "$log" | sed 's/^/  | /'
    return 1
  fi
}
filled() { # FILE...: all there and none empty
  local file bad=0
  for file in "$@"; do
    [ -s "$file" ] || { echo "  | missing or empty: $file"; bad=1; }
  done
  [ "$bad" = 0 ]
}
same() { # WHAT EXPECTED FOUND
  [[ -n $2 && $2 = "$3" ]] || { printf '  | %s: expected %s, found %s\n' "$1" "$2" "$3"; return 1; }
}
lines() { wc -l <"$1" | tr -d ' '; }
says() { grep -q -- "$2" "$1" || { echo "  | no '$2' in $1"; return 1; }; }
fails_with() { # STATUS TEXT OPTION...: run.sh refuses, in one line beside that of install.sh
  local status=$1 text=$2 found
  shift 2
  found=$(./run.sh "$@" 2>&1 >/dev/null) && { echo "  | ./run.sh $* succeeded"; return 1; }
  ./run.sh "$@" >/dev/null 2>&1
  same status "$status" $? && same lines 1 "$(grep -vc '^install.sh: ' <<<"$found")" && [[ $found == *"$text"* ]]
}

model=exp/speechllm_xl_micro
results=exp/RESULTS.md
tables() { grep '^|' "$results"; }
times() { # of what costs time to make; a change means that it was made again
  # shellcheck disable=SC2012  # names are ours
  ls -l --time-style=full-iso dump/raw/*/wav.scp data/tokens_train_bpe60/tokenizer.model exp/*/stats/.done exp/*/[0-9]*epoch.pth \
    exp/*/*.ave.pth exp/aligner/aligned/*/char_ends "$model"/decode_*/*/text "$model"/decode_*/*/decode.json
}
every_utterance() { # aligned + left out = all
  local set
  for set in train dev test; do
    same "$set aligned and failed" "$(lines "dump/raw/$set/text")" \
      "$(cat exp/aligner/aligned/"$set"/{char_ends,failed} | wc -l | tr -d ' ')" || return 1
  done
}
every_decoding() {
  local set search
  for search in greedy alsd alsd_ctc0.3; do
    for set in dev test test_2x; do
      same "$search $set" "$(lines "dump/raw/$set/text")" "$(lines "$model/decode_$search/$set/text")" || return 1
    done
  done
}
result_rows() { # three rates of three searches and three sets
  same rows 27 "$(grep -c -E '^\|decode_(greedy|alsd|alsd_ctc0\.3)/(dev|test|test_2x)\|[0-9]+\|[0-9]+\|([0-9.]+\|){6}$' "$results")"
}
transcribed() {
  local audio
  audio=$(head -n 1 dump/raw/test/wav.scp | cut -d ' ' -f 2)
  "$repo/local/run.sh" python3 -m espnet_speechllm_xl transcribe "$audio" --model "$model.zip" --format json \
    >"$work/transcribe.json" 2>"$work/transcribe.err" || { cat "$work/transcribe.err"; return 1; }
  filled "$work/transcribe.json"
}

check "--help lists stages and options" bash -c './run.sh --help | grep -q -e "--longform-factors" && ./run.sh --help | grep -q "11 pack 12 latency" && ./run.sh --help | grep -q "alsd_ctc0.3"'
check "an unknown option is refused" fails_with 2 "unknown option --nope" --nope 1
check "an unknown stage is refused" fails_with 2 "no stage 'trian'" --stage trian
check "stages in the wrong order are refused" fails_with 2 "comes after" --stage score --stop-stage decode
check "a number of GPUs that is none is refused" fails_with 2 "--ngpu 'two': give a whole number" --ngpu two
check "a stage whose files are not there is refused" fails_with 2 "wav.scp is not there: run the stages" --stage train

check "stages 1 to 6" run first --stop-stage align --align-sets test
check "stages 7 to 11, by name" run second --stage train --stop-stage pack
[ "$failed" = 0 ] || { summary; exit 1; }
check "data and dump" filled data/{train,dev,test}/{wav.scp,text,utt2spk,spk2utt,ref.ctm} \
  dump/raw/{train,dev,test,test_2x}/{wav.scp,text,utt2spk,spk2utt,utt2num_samples,feats_type,ref.ctm}
check "24 training utterances" same utterances 24 "$(lines dump/raw/train/text)"
check "long form joins" same utterances $((($(lines dump/raw/test/text) + 1) / 2)) "$(lines dump/raw/test_2x/text)"
check "tokens" filled data/tokens_train_bpe60/{tokenizer.model,tokens.txt}
check "aligner" filled exp/aligner/{config.yaml,tokenizer.model,checkpoint.pth,valid.ter.ave.pth,valid.ter.best.pth,train.log} \
  exp/aligner/stats/train/{feats_stats.npz,speech_shape,text_shape} exp/aligner/stats/valid/{speech_shape,text_shape}
check "alignments" filled exp/aligner/aligned/{train,dev,test}/{char_ends,words.ctm,text,wav.scp,report.json,report/report.md}
check "aligned + left out = all" every_utterance
check "recogniser" filled "$model"/{config.yaml,tokenizer.model,checkpoint.pth,valid.acc_text.ave.pth,train.log} \
  "$model"/stats/train/{feats_stats.npz,speech_shape,text_shape,ends_shape} "$model".zip
check "learning curves for TensorBoard" filled "$model"/tensorboard/{train,valid}/events.*
check "decodings" filled "$model"/decode_{greedy,alsd,alsd_ctc0.3}/{dev,test,test_2x}/{score,words.ctm,decode.json} \
  "$model"/decode_{greedy,alsd,alsd_ctc0.3}/{dev,test,test_2x}/score_{wer,cer,ter}/{ref.trn,hyp.trn,result.txt}
check "every utterance decoded" every_decoding
check "exp/RESULTS.md has all rows" result_rows
check "figures" filled exp/images/{aligner,speechllm_xl_micro}_learning_curve.png exp/images/speechllm_xl_micro_test_length.png
check "progress of both trainings was shown" same lines 4 "$(cat "$work"/{first,second}.log | grep -c '^epoch [12]/2: train loss')"
check "the last line says how to transcribe" says "$work/second.log" "transcribe FILE --model .*speechllm_xl_micro.zip"
check "one file transcribed with the packed model" transcribed

times >"$work/times"
tables >"$work/tables"
check "everything again" run third
check "nothing expensive was made again" diff "$work/times" <(times)
check "the results are the same" diff "$work/tables" <(tables)

check "one search had joint CTC scoring" says "$model/decode_alsd_ctc0.3/test/decode.json" '"ctc_weight": 0.3'

check "stage 12, the latency of two chunk sizes" run latency --stage latency --stop-stage latency \
  --latency-args "--chunk-sizes 0.32,0.64"
check "latency report" filled "$model"/latency/test/{LATENCY.md,latency.json,streamed_0.32.json,streamed_0.64.json}
check "it has a row for both" same rows 2 "$(grep -c -E '^\|0\.(32|64)\|1\.28\|' "$model/latency/test/LATENCY.md")"

check "reference alignments" run fourth --alignment ctm:ref --stage aligner --stop-stage train --tag reference \
  --train-args "--max_epoch 1" --align-args "--silences <eps>,SIL"
check "they need no aligner" says "$work/fourth.log" "stage 5: aligner: nothing to do"
check "all utterances have them" same utterances 24 "$(lines exp/reference/aligned/train/char_ends)"
check "a model on them" filled exp/reference/{1epoch.pth,valid.acc_text.ave.pth}

# baseline SYSTEM "SEARCHES" OPTION...: trained for an epoch on what is there, decoded with every search
baseline() {
  local tag=$1 searches=$2 search
  shift 2
  run "$tag" --system "$tag" --stage aligner --stop-stage pack --tag "$tag" "$@" || return 1
  for search in $searches; do
    filled "exp/$tag/decode_$search/"{dev,test,test_2x}/{text,decode.json,score_wer/result.txt} || return 1
    says "$results" "^|decode_$search/test_2x|" || return 1
  done
  filled "exp/$tag.zip"
}
check "CTC" baseline ctc "greedy prefix_beam" --train-config "$repo/tests/conf/train_ctc_micro.yaml"
check "transducer" baseline transducer "greedy default alsd" --init ctc \
  --train-config "$repo/tests/conf/train_transducer_micro.yaml"
check "chunked AED" baseline chunked_aed "greedy alsd" \
  --train-config "$repo/tests/conf/train_chunked_aed_micro.yaml"
check "CTC-prompt-LM" baseline ctc_prompt_lm "greedy alsd" \
  --train-config "$repo/tests/conf/train_ctc_prompt_lm_micro.yaml"
check "a baseline needs no alignment" says "$work/transducer.log" "stage 6: align: nothing to do (--system transducer)"
check "it began with the encoder of CTC" says exp/transducer/config.yaml "exp/ctc/valid.ter.ave.pth:acoustic:acoustic"
no_such_init() { ! run none_such --stage train --stop-stage train --tag none_such --init none_such >/dev/null; }
check "a start that is not there is refused" no_such_init
check "and named" says "$work/none_such.log" "--init none_such: give aligner, none, or a model"
check "a baseline from random weights" run init --stage train --stop-stage train --system ctc --init none --tag init \
  --train-config "$repo/tests/conf/train_ctc_micro.yaml"
check "non-streaming SpeechLLM" baseline nonstreaming "greedy alsd" --train-args "--max_epoch 1"
check "one chunk holds all audio" says exp/nonstreaming/config.yaml "^    chunk: null"
check "with a full-context encoder" run full --stage train --stop-stage decode --system nonstreaming_full --tag full \
  --train-args "--max_epoch 1"
check "its segment is the utterance" says exp/full/config.yaml "^    segment: null"
check "ReaLLM" baseline reallm "greedy alsd" --train-args "--max_epoch 1 --chunking_conf delay=12"
check "its chunks are 240 ms" says exp/reallm/config.yaml "^    chunk: 6"

one_damaged_file() { # the recipe goes on, and its status tells
  local audio out=$model/decode_greedy_damaged
  audio=$(head -n 1 dump/raw/dev/wav.scp | cut -d ' ' -f 2)
  head -c 100 "$audio" >"$audio.cut" && mv "$audio.cut" "$audio"
  ! run damaged --stage decode --stop-stage pack --searches greedy --decode-tag _damaged >/dev/null || return 1
  same failed 1 "$(lines "$out/dev/failed")" && filled "$out"/{dev,test,test_2x}/text \
    && says "$work/damaged.log" "decode: $out/dev/failed" && says "$work/damaged.log" "stage 11: pack" \
    && says "$results" "decode_greedy_damaged/dev: 1 utterances without hypothesis count as deletions"
}
check "one damaged file stops nothing else" one_damaged_file

clean() { # a clone after a run: `git status` shows nothing
  local new
  git -C "$work" init -q && git -C "$work" add .gitignore 'egs2/*/*/run.sh' 'egs2/*/*/local/*' egs2/TEMPLATE || return 1
  new=$(git -C "$work" ls-files --others --exclude-standard egs2) || return 1
  [ -z "$new" ] || { printf '  | untracked: %s\n' "$new"; return 1; }
}
check "a clone stays clean" clean

# Text without spaces, with digits and punctuation, heard as it is read.
mandarin() {
  mkdir -p "$work/egs2/mini_mandarin/speechllm_xl1" && cd "$work/egs2/mini_mandarin/speechllm_xl1" || return 1
  cp -r "$repo/egs2/mini_mandarin/speechllm_xl1/"{run.sh,local} .
  if ! ./run.sh --data-opts "--size tiny" --nj 1 --beam-size 2 --searches greedy --stop-stage score \
    --train-config "$repo/tests/conf/train_micro.yaml" --aligner-config "$repo/tests/conf/train_aligner_micro.yaml" \
    >"$work/mandarin.log" 2>&1; then
    tail -n 30 "$work/mandarin.log" | sed 's/^/  | /'
    return 1
  fi
}
leads() { # the first table of a model
  same "first table" "### $1" "$(awk '/^## speechllm/ { model = 1 } model && /^### / { print; exit }' exp/RESULTS.md)"
}
check "Mandarin" mandarin
check "numbers have the time of their reading" says "$work/mandarin.log" \
  "aligned/train: [1-9][0-9]* of [0-9]* words are not written as they are read (most often: "
check "its text has numbers, its aligner heard none" \
  bash -c 'grep -q "[0-9]月" dump/raw/train/text && ! cut -d " " -f 2- dump/raw/train/text_spoken | grep -q -e "[0-9]" -e "。"'
check "characters lead its results" leads CER
check "WER after a normaliser" says exp/RESULTS.md "^### Normalised WER (basic)"
check "punctuation" says exp/RESULTS.md "^### Punctuation and capitals"

# Real speech where it is at hand: two of the digits, learnt from nothing by a micro CTC.
digits() {
  mkdir -p "$work/egs2/fsdd/speechllm_xl1" && cd "$work/egs2/fsdd/speechllm_xl1" || return 1
  cp -r "$repo/egs2/fsdd/speechllm_xl1/"{run.sh,local} .
  if ! ./run.sh --data-opts "--digits 2" --nj 1 --system ctc --init none --searches greedy --stop-stage score \
    --train-config "$repo/tests/conf/train_ctc_micro.yaml" --train-args "--max_epoch 24" >"$work/digits.log" 2>&1; then
    tail -n 30 "$work/digits.log" | sed 's/^/  | /'
    return 1
  fi
}
counted() { # 6 speakers, 50 takes of 2 digits each: 5 for the test, 5 for dev, 40 to train on
  local set
  for set in train:480 dev:60 test:60; do
    same "${set%:*}" "${set#*:}" "$(lines "dump/raw/${set%:*}/text")" || return 1
  done
}
learnt() { # words of the test set that are right, in percent
  local right
  right=$(sed -n '/^### WER/,/^### CER/s/^|decode_greedy\/test|60|60|\([0-9]*\)\..*/\1/p' exp/RESULTS.md)
  [ "${right:-0}" -ge 70 ] || { echo "  | of zero and one, ${right:-?} % are right"; return 1; }
}
if [ -d "${SPEECHLLM_XL_DATA:-}/fsdd" ]; then
  check "digits of real speakers" digits
  check "all takes are in their sets" counted
  check "seven of ten are right" learnt
fi

summary
