#!/usr/bin/env bash
# Runs a command in the environment that local/install.sh made, without activating it: local/run.sh speechllm-xl --help
# shellcheck source=local/path.sh
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/path.sh" || exit 1
exec "$@"
