# shellcheck shell=bash
# One process at a time where several would work on the same files. Source it; it only defines functions.

# hold_lock FD WHAT SAY...: waits for the lock of the file that is open as FD, and holds it until FD is closed; SAY says
# a line, that it waits, or that there is no lock. There is none without flock (macOS), and where the file system
# refuses it: a failed call is no busy lock.
hold_lock() {
  local fd=$1 what=$2 said status=0
  shift 2
  command -v flock >/dev/null || return 0
  said=$(flock -n "$fd" 2>&1) || status=$?
  if [ "$status" = 1 ] && [ -z "$said" ]; then # busy; another failure has a reason or another status
    "$@" "another process works on $what: waiting for its end"
    status=0
    said=$(flock "$fd" 2>&1) || status=$?
  fi
  [ "$status" = 0 ] || "$@" "no lock can be had on $what (${said:-flock ended with status $status}): going on without;" \
    "start nothing else that works there"
}

# can_write FILE: makes it and its folder where they are not; prints a line that says why that cannot be.
can_write() {
  local why
  why=$({ mkdir -p "$(dirname "$1")" && : >>"$1"; } 2>&1) && return
  echo "$1 cannot be written: ${why##*: }: mend that, or name another place; then run the same command again"
  return 1
}
