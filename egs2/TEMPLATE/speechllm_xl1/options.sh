# shellcheck shell=bash
# Of the driver beside it: the options of the data, how options and stages are read, where configurations lie. Source it
# with the variables root and stages set, and the driver's own options, between the same two marks, in its file; then call
# read_options "$@".
# shellcheck disable=SC2034,SC2154  # set or used by the driver

# shellcheck source=local/lock.sh
. "${root:-$(dirname "${BASH_SOURCE[0]}")/../../..}/local/lock.sh"

# options begin
nj=2                  # processes for formatting, aligning and decoding
ngpu=0                # GPUs for training on one machine; more than one: DDP
device=               # of aligning and decoding: cpu or cuda (default: cuda if ngpu > 0)
train_set=train       # names of the sets in data/
valid_set=dev
test_sets="test"
downloads=            # where the corpus' archive is, passed to local/data.py
data_opts=            # further options of local/data.py
kaldi_data=           # take DIR/<set> instead of running local/data.py
dumpdir=              # take this ESPnet dump (DIR/raw/<set>) instead of formatting; with --kaldi-data: write the dump there
speed_perturb=        # e.g. "0.9 1.0 1.1"
sample_rate=16000     # Hz, of the dump; other ones want the same in "--features_conf sample_rate=8000" of the trainings
min_wav_duration=0.2  # seconds; shorter training utterances are left out
max_wav_duration=30   # seconds
cleaner=              # of texts when they are formatted: lower, upper, or ESPnet's tacotron, jaconv, ...; several: "jaconv lower"
text=as-is            # of the recogniser: written: with case, punctuation and digits as the corpus has them, while the
                      # aligner hears plain characters, of text_spoken beside text where the corpus has that; plain: the
                      # recogniser, too; as-is: text for both
nlsyms=               # file of symbols, one a line (<noise>), each of which is one token
token_type=bpe        # of the recogniser: bpe, unigram, char or hf
espnet_token_type=    # of stock ESPnet's systems on this corpus, for the recipe's run.sh (default: --token-type)
vocab_size=100        # tokens (bpe, unigram)
hf_tokenizer=         # directory, for token_type hf
hf_letters=as-is      # of the text of a recogniser with token_type hf: as-is, or lower, because LLMs cut words in capitals
                      # into many tokens; the aligner keeps its characters, and scoring then ignores case
expdir=exp
normaliser=none       # of whisper-normalizer, english or basic: WER after it beside the raw one
results=              # file of the error rates, figures in images/ beside it (default: RESULTS.md in --expdir)
# options end

log() { printf '%s %s\n' "$(date '+%H:%M:%S')" "$*"; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 2; }

# option_lines FILE...: their lines name=default # description; option_help FILE...: and the rest of the descriptions
option_lines() { option_help "$@" | grep '^[a-z_]*='; }
option_help() { sed -n '/^# options begin/,/^# options end/{/^[a-z_]*=/p;/^  *# /p}' "$@"; }
option_files=("${BASH_SOURCE[1]}" "${BASH_SOURCE[0]}") # the driver and this file

usage() {
  printf 'usage: %s [--option value ...]\n\nstages:' "$usage_name"
  local i
  for i in "${!stages[@]}"; do printf ' %d %s' $((i + 1)) "${stages[i]}"; done
  printf '\n\nsystems: %s\n\noptions, with their values in this recipe:\n' "$(list_systems)"
  local line name
  while IFS= read -r line; do
    name=${line%%=*}
    if [[ $line = ' '* ]]; then
      printf '    %s\n' "$line"
    else
      printf '  %-23s %s\n' "--${name//_/-} ${!name}" "$([[ $line != *'#'* ]] || echo "#${line#*#}")"
    fi
  done < <(option_help "${option_files[@]}")
}

# read_options "$@": sets the variables; command becomes, for RESULTS.md, the driver with the options that make a
# difference, as they could be typed again; stage and stop_stage become numbers.  What stands before an argument -- is
# the recipe's own, what follows its user's.  Of an option given twice the last counts; options that hold further options
# (--train-args) are joined.
read_options() {
  local name
  note_own_tokens
  # How a user calls the driver: by the recipe's script where there is one.
  if [ -x "$usage_name" ]; then usage_name=./$usage_name; else usage_name=$0; fi
  command=$(basename "${option_files[0]}")
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --)
        [[ " $* " != *" --system espnet_"* ]] || token_type=${espnet_token_type:-$token_type}
        note_own_tokens
        shift
        ;;
      --*)
        name=${1#--}
        name=${name//-/_}
        if ! [[ $name =~ ^[a-z_]+$ ]] || ! option_lines "${option_files[@]}" | grep "^$name=" >/dev/null; then
          die "unknown option $1; $usage_name --help lists them"
        fi
        [ $# -ge 2 ] || die "option $1 needs a value"
        case $name in
          *_args | data_opts) printf -v "$name" '%s' "${!name:+${!name} }$2" ;;
          *) printf -v "$name" '%s' "$2" ;;
        esac
        case $name in stage | stop_stage | nj | downloads) ;; *) command+=$(printf ' %s %q' "$1" "$2") ;; esac
        shift 2
        ;;
      *) die "unexpected argument '$1'; $usage_name --help" ;;
    esac
  done
  [[ $nj =~ ^[1-9][0-9]*$ ]] || die "--nj '$nj': give a whole number from 1"
  [[ $ngpu =~ ^[0-9]+$ ]] || die "--ngpu '$ngpu': give a whole number from 0"
  [[ $text =~ ^(as-is|written|plain)$ ]] || die "--text '$text': give as-is, written or plain"
  [[ $hf_letters =~ ^(as-is|lower)$ ]] || die "--hf-letters '$hf_letters': give as-is or lower"
  [[ $normaliser =~ ^(none|basic|english)$ ]] || die "--normaliser '$normaliser': give none, basic or english"
  stage=$(stage_number "$stage") || exit 2
  stop_stage=$(stage_number "$stop_stage") || exit 2
  [ "$stage" -le "$stop_stage" ] || die "--stage ${stages[stage - 1]} comes after --stop-stage ${stages[stop_stage - 1]}"
  [ -n "$device" ] || { device=cpu; [ "$ngpu" -eq 0 ] || device=cuda; }
  [ "$stage" -gt 1 ] || check_source
  results=${results:-$expdir/RESULTS.md}
  # Where everybody finds what the data stages make.
  train_data=$train_set
  [ -z "$speed_perturb" ] || train_data=${train_set}_sp
  dump=${dumpdir:-dump}/raw
  tokens=$(tokens_dir "$token_type" "$vocab_size")
  # No stage asks anything; ESPnet would, of a damaged checkpoint, where standard input is a terminal.
  exec </dev/null
}

# tokens_name TYPE SIZE: bpe100, char, hf_<name of the tokenizer's directory>, hf_<name>_lower.
tokens_name() {
  case $1 in
    hf) hf_name "$hf_tokenizer" ;;
    char) echo char ;; # all there are
    *) echo "$1$2" ;;
  esac
}

# hf_name DIR: of the tokens of the Hugging Face tokenizer in that directory.
hf_name() {
  local name
  name=hf_$(basename "$1")
  [ "$hf_letters" = as-is ] || name+=_$hf_letters
  echo "$name"
}

# tokens_dir TYPE SIZE: where the tokens made of the training text are, or a copy of the Hugging Face tokenizer.
tokens_dir() { echo "data/tokens_${train_data}_$(tokens_name "$1" "$2")"; }

# note_own_tokens: the recipe's own ones are not named in the names of its experiments.
note_own_tokens() {
  own_tokens=$(tokens_name "$token_type" "$vocab_size")
  own_aligner_tokens=$(tokens_name "${aligner_token_type-}" "${aligner_vocab_size-}")
}

# experiment NAME TOKENS OWN: NAME, with the name of other tokens than the recipe's own behind it.  A training that has
# these tokens already keeps the bare name.
experiment() {
  local tokens=data/tokens_${train_data}_$2 old=$expdir/$1
  if [ "$2" = "$3" ] \
    || grep -qxF -e "tokenizer: $tokens/tokenizer.model" -e "tokenizer: $tokens/tokenizer" "$old/config.yaml" 2>/dev/null \
    || cmp -s "$tokens/tokenizer.model" "$old/tokenizer.model"; then
    echo "$1"
  else
    echo "$1_$2"
  fi
}

# check_source: whether the data stage has where to take the data from.
check_source() {
  local from=${kaldi_data:-$dumpdir}
  if [ -n "$from" ]; then
    [ -d "$from" ] || die "--$([ -n "$kaldi_data" ] && echo kaldi-data || echo dumpdir) $from: no such directory"
    [ ! -f "$from/wav.scp" ] || die "$from is itself a set: give the directory that holds the sets"
  elif [ ! -f local/data.py ]; then
    die "no local/data.py here to make the data: give --kaldi-data DIR, where DIR/<set> are Kaldi directories," \
      "or --dumpdir DIR, an ESPnet dump; or work in the directory of a recipe"
  fi
}

# check_names: ESPnet cuts file,name,type at commas and the weights to begin with, file:from:to, at colons.
check_names() {
  local name
  for name in train_set valid_set test_sets dumpdir expdir tag aligner_tag; do
    [[ ${!name-} != *,* ]] || die "--${name//_/-} '${!name}': ESPnet cuts paths at commas: give a name without one"
  done
  for name in expdir tag aligner_tag; do
    [[ ${!name-} != *:* ]] || die "--${name//_/-} '${!name}': ESPnet cuts paths at colons: give a name without one"
  done
}

stage_number() {
  local i
  for i in "${!stages[@]}"; do
    if [ "$1" = "${stages[i]}" ] || [ "$1" = $((i + 1)) ]; then echo $((i + 1)); return; fi
  done
  die "no stage '$1'; there are: ${stages[*]}"
}

# runs NUMBER [REASON]: whether a stage is to run; a REASON leaves it out.
runs() {
  [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] || return 1
  log "stage $1: ${stages[$1 - 1]}${2:+: nothing to do ($2)}"
  [ -z "${2:-}" ]
}

# has_conf NAME: whether conf finds it.
has_conf() { [ -f "$1" ] || [ -f "conf/$1" ] || [ -f "$root/conf/$1" ]; }

# conf NAME [KIND [ADVICE]]: the file of a configuration, below conf/ or conf/KIND/. A recipe's own comes before the
# shared one.
conf() {
  local file kind=${2:+$2/}
  for file in "$1" "conf/$kind$1" "$root/conf/$kind$1"; do
    if [ -f "$file" ]; then echo "$file"; return; fi
  done
  die "no configuration $1 here, in conf/ or in $root/conf${2:+ ($2/ of each)}${3:+: $3}"
}

# lock DIR: one process works there, as long as it or the shell lives; others wait.
lock() {
  local why
  why=$(can_write "$1/.lock") || die "$why"
  exec 9>>"$1/.lock"
  hold_lock 9 "$1" log
}
unlock() { exec 9>&-; }

# need ADVICE FILE...: ends with the advice when one of the files is not there.
need() {
  local advice=$1 file
  shift
  for file in "$@"; do
    [ -f "$file" ] || die "$file is not there: $advice"
  done
}

# checksum FILE...: of their contents, whatever their names; directories count with all files in them.
checksum() {
  local path
  for path in "$@"; do
    if [ -d "$path" ]; then (cd "$path" && find -L . -type f -print0 | sort -z | xargs -0 cat); else cat "$path"; fi
  done | cksum
}

# tolerate STAGE FILE REGEX COMMAND...: goes on when it ends with 1, as those do of whose inputs some failed; finish
# tells of them: the lines of FILE that match.
incomplete=()
tolerate() {
  local stage=$1 file=$2 regex=$3 status=0
  shift 3
  "$@" || status=$?
  case $status in
    0) ;;
    1) left_out "$stage" "$file" "$regex" ;;
    *) exit "$status" ;;
  esac
}

left_out() {
  local lines
  mapfile -t lines < <(grep -e "$3" "$2" | cut -c 1-200 | sed 's/^/  /')
  incomplete+=("$1: $2" "${lines[@]:0:5}")
  [ ${#lines[@]} -le 5 ] || incomplete+=("  and $((${#lines[@]} - 5)) more there")
}

# lacks_text SET: a directory of audio without transcripts.
lacks_text() { [ -f "$1/wav.scp" ] && [ ! -f "$1/text" ]; }

# finish: the end of a driver, with status 1 when something was left out.
finish() {
  [ ${#incomplete[@]} -gt 0 ] || return 0
  log "some inputs failed:"
  printf '  %s\n' "${incomplete[@]}"
  exit 1
}

# doubts MODEL: a line for each sign that what follows from this training is not worth its time.
doubts() { python3 -m espnet_speechllm_xl doubts "$1"; }

# score: every decoded set below $expdir, by whichever driver it was decoded.
score() {
  tolerate score "$results" "^- $expdir/" \
    python3 -m espnet_speechllm_xl score --exp "$expdir" --dump "$(dirname "$dump")" --results "$results" \
    --command "$command" --normaliser "$normaliser"
}
