#!/usr/bin/env bash
# Makes the environment if need be and runs the tests; arguments go to pytest (paths as seen from the repository).
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/.." # through links
local/install.sh --extras test
# shellcheck source=local/path.sh
. local/path.sh
exec python -m pytest -q -n 2 --dist loadfile "$@"
