# shellcheck shell=bash
# How recipes start their long commands. Source it after path.sh; choose with cmd_backend=local (default) or slurm.
#
#   train_cmd  [--gpus N] [--progress REGEX] NJ LOG COMMAND...
#   decode_cmd [--gpus N] [--progress REGEX] NJ LOG COMMAND...
#
# run NJ copies of COMMAND side by side, with @JOB@ in LOG and in every argument replaced by 1..NJ, and wait for all of
# them. When any fails: status 1, the number that failed, and name and last lines of the first one's log.
#
#   pooled_cmd  NJ LOG COMMAND...                COMMAND --nj NJ, with Slurm as one job of kind data
#   sharded_cmd [--gpus N] NJ LOG COMMAND...     COMMAND --nj NJ, with Slurm as NJ jobs COMMAND --shard @JOB@/NJ and then
#                                                COMMAND, which puts together what they made
#
# are for commands that work on a set with processes of their own: on one machine they show their own progress.
# --progress shows the lines of the first job's log that match, as they come. Slurm options stand in conf/slurm.conf
# (another file: slurm_conf=FILE).

cmd_backend=${cmd_backend:-local}
_cmd_dir=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
slurm_conf=${slurm_conf:-$_cmd_dir/../conf/slurm.conf}

train_cmd() { run_jobs --kind train "$@"; }
decode_cmd() { run_jobs --kind decode "$@"; }

# check_backend: whether jobs can be started as cmd_backend says.
check_backend() {
  case $cmd_backend in
    local) return 0 ;;
    slurm)
      if ! command -v sbatch >/dev/null; then
        echo "run_jobs: no sbatch here: use cmd_backend=local" >&2
      elif [ ! -r "$slurm_conf" ]; then
        echo "run_jobs: cannot read $slurm_conf: name another by slurm_conf=FILE" >&2
      else
        return 0
      fi
      ;;
    *) echo "run_jobs: cmd_backend is local or slurm, not '$cmd_backend'" >&2 ;;
  esac
  return 2
}

pooled_cmd() {
  local nj=$1 log=$2
  shift 2
  check_backend || return 2
  if [ "$cmd_backend" = slurm ]; then
    run_jobs --kind data --processes "$nj" 1 "$log" "$@" --nj "$nj"
  else
    "$@" --nj "$nj"
  fi
}

sharded_cmd() {
  local gpus=0
  check_backend || return 2
  if [ "$1" = --gpus ]; then
    gpus=$2
    shift 2
  fi
  local nj=$1 log=$2
  shift 2
  if [ "$cmd_backend" = slurm ]; then
    # Not status 1, by which COMMAND says that some of its inputs failed.
    decode_cmd --gpus "$gpus" "$nj" "$log" "$@" --shard "@JOB@/$nj" || return 3
    "$@"
  else
    "$@" --nj "$nj"
  fi
}

run_jobs() {
  local kind=all gpus=0 processes=1 progress=""
  while [ $# -gt 0 ]; do
    case $1 in
      --kind) kind=$2 ;;
      --gpus) gpus=$2 ;;
      --processes) processes=$2 ;;
      --progress) progress=$2 ;;
      *) break ;;
    esac
    shift 2
  done
  if [ $# -lt 3 ] || ! [[ $1 =~ ^[1-9][0-9]*$ && $gpus =~ ^[0-9]+$ ]]; then
    echo "run_jobs: usage: run_jobs [--kind KIND] [--gpus N] [--processes N] [--progress REGEX] NJ LOG COMMAND...," \
      "got: $*" >&2
    return 2
  fi
  local nj=$1 log=$2
  shift 2
  if [ "$nj" -gt 1 ] && [[ $log != *@JOB@* ]]; then
    echo "run_jobs: $nj jobs would share the log $log: put @JOB@ into its name" >&2
    return 2
  fi
  check_backend || return 2
  local j
  for ((j = 1; j <= nj; j++)); do
    [ "$kind" != train ] || _keep_old "${log//@JOB@/$j}" || return 1
    mkdir -p "$(dirname "${log//@JOB@/$j}")" && : >"${log//@JOB@/$j}" || return 1
  done
  "_run_$cmd_backend" "$@" || true
  _report_jobs
}

# _keep_old LOG: x.log becomes x.1.log, x.1.log becomes x.2.log, ...: a resumed training continues earlier logs, and the
# learning curves are read from all of them (evaluation/train_log.py).
_keep_old() {
  local base=${1%.log} n=1
  [ -s "$1" ] || return 0
  while [ -e "$base.$n.log" ]; do n=$((n + 1)); done
  for (( ; n > 1; n--)); do mv "$base.$((n - 1)).log" "$base.$n.log" || return 1; done
  mv "$1" "$base.1.log"
}

# _logged LOG COMMAND...: runs it; the log gets the command, its output and, as the last line, its status.
_logged() {
  local log=$1 start=$SECONDS status=0
  shift
  {
    printf '# %s\n# started %s on %s\n' "$(printf '%q ' "$@")" "$(date '+%F %T')" "$(hostname)"
    "$@" </dev/null || status=$?
  } >>"$log" 2>&1
  [ -z "$(tail -c 1 "$log")" ] || echo >>"$log" # the last line of the output may lack its end
  printf '# ended with status %d after %d s\n' "$status" $((SECONDS - start)) >>"$log"
  return $status
}

# _report_jobs (nj and log of the caller): judged by the logs' last lines, so that a killed job counts as failed.
_report_jobs() {
  local j name failed=() last why
  for ((j = 1; j <= nj; j++)); do
    [[ $(tail -n 1 "${log//@JOB@/$j}") == "# ended with status 0 "* ]] || failed+=("$j")
  done
  [ ${#failed[@]} -gt 0 ] || return 0
  name=${log//@JOB@/${failed[0]}}
  last=$(tail -n 10 "$name" | cut -c 1-1000)
  echo "run_jobs: ${#failed[@]} of $nj jobs failed (${failed[*]}); the end of $name:" >&2
  printf '%s\n' "$last" | sed 's/^/  | /' >&2
  if [[ $last =~ "# ended with status "([0-9]+) ]]; then
    _report_signal $((BASH_REMATCH[1] - 128)) >&2
  elif ! why=$(echo 2>&1 >>"$name"); then
    echo "run_jobs: $name cannot be written: ${why##*: }: free some space there, then run the stage again" >&2
  else
    echo "run_jobs: it was stopped from outside (memory or time limit, kill, Ctrl-C): run the stage again" >&2
  fi
  return 1
}

# _report_signal NUMBER: what a job died of, and what to do; nothing of a number that is no signal.
_report_signal() {
  case $1 in
    9) echo "run_jobs: it was killed, most often because memory ran out: give it more, or smaller batches" ;;
    15 | 2 | 1) echo "run_jobs: it was stopped from outside: run the stage again" ;;
    7) echo "run_jobs: it crashed (SIGBUS): the disk or /dev/shm is full, or a file was cut while it was read" ;;
    4 | 6 | 8 | 11) echo "run_jobs: it crashed in native code (SIG$(kill -l "$1")): the log says where, if anything does" ;;
  esac
}

# _follow PID: shows matching lines of the first job's log as long as PID lives.
_follow() {
  tail -n +1 -s 0.5 --pid="$1" -F "${log//@JOB@/1}" 2>/dev/null | grep --line-buffered -E -- "$progress" || true
}

# A subshell with job control: every job leads its own process group, so that Ctrl-C ends its children as well.
_run_local() (
  exec 2>/dev/null # job control would announce every job's end; what the jobs say is in their logs
  set -m
  pids=()
  # shellcheck disable=SC2317,SC2329  # called by the trap
  stop() {
    local pid
    trap - INT TERM HUP
    for pid in "${pids[@]}"; do kill -TERM -- "-$pid" 2>/dev/null; done
    exit 130
  }
  trap stop INT TERM HUP
  threads=$(($(env -u OMP_NUM_THREADS nproc) / nj))
  [ "$threads" -le "${OMP_NUM_THREADS:-1}" ] || threads=${OMP_NUM_THREADS:-1}
  [ "$threads" -ge 1 ] || threads=1
  export OMP_NUM_THREADS=$threads
  for ((j = 1; j <= nj; j++)); do
    _logged "${log//@JOB@/$j}" "${@//@JOB@/$j}" &
    pids+=("$!")
  done
  if [ -n "$progress" ]; then
    _follow "${pids[0]}" &
    follower=$!
  fi
  for pid in "${pids[@]}"; do wait "$pid" || true; done
  [ -z "$progress" ] || wait "$follower" || true
)

# _slurm_options: one option a line, from conf/slurm.conf, for kind, gpus and processes of the caller.
_slurm_options() {
  local label options wanted=$kind
  [ "$gpus" -eq 0 ] || wanted=${kind}_gpu
  while read -r label options || [ -n "$label" ]; do # the last line may lack its end
    case $label in
      all | "$wanted") ;;
      *) continue ;;
    esac
    options=${options//GPUS/$gpus}
    [ -z "$options" ] || printf '%s\n' "${options//NJ/$processes}" | tr -s ' \t' '\n'
  done <"$slurm_conf"
}

# One array job; its script and what Slurm itself says (limits, cancelling) stand beside the logs in slurm/.
_run_slurm() {
  local first=${log//@JOB@/1} folder script options=() out sbatch_pid name
  name=$(basename "$first")
  folder=$(dirname "$first")/slurm
  script=$folder/$(basename "${log//.@JOB@/}").sh
  out=$folder/$(basename "${log//.@JOB@/}").%a.out
  mkdir -p "$folder" && rm -f "${out%.%a.out}".*.out
  mapfile -t options < <(_slurm_options)
  {
    printf '#!/usr/bin/env bash\ncd %q || exit 1\n' "$PWD"
    printf '. %q\nargs=(%s)\n' "$_cmd_dir/cmd.sh" "$(printf '%q ' "$log" "$@")"
    # shellcheck disable=SC2016  # for the job's shell
    printf '%s\n' 'export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}' '_logged "${args[@]//@JOB@/$SLURM_ARRAY_TASK_ID}"'
  } >"$script"
  # The job goes on when the recipe that sent it is killed: the next run's must wait, not train beside it.
  [ "$kind" != train ] || { name=$(realpath "$first"); options+=(--dependency=singleton); }
  sbatch --wait --array="1-$nj" --job-name="$name" --output="$out" "${options[@]}" "$script" \
    >"$script.sbatch" 2>&1 &
  sbatch_pid=$!
  if [ -n "$progress" ]; then _follow "$sbatch_pid"; fi
  if ! wait "$sbatch_pid"; then
    cat "$script.sbatch" "${out%.%a.out}".*.out 2>/dev/null | tail -n 5 | sed 's/^/run_jobs: slurm: /' >&2
  fi
  return 0
}
