#!/usr/bin/env bash
# Re-makes the paper's tables I-V on a corpus: trains and decodes row by row, then writes TABLES.md.
#   local/paper_tables.sh --corpus an4 --list
#   local/paper_tables.sh --corpus mini_espeak --table I --row 0.64\ s --seeds "1 2 3"
#   local/paper_tables.sh --corpus an4 -- --downloads DIR     options after -- go to the recipe's run.sh
# What the rows are stands in conf/paper_tables.yaml.  An interrupted run goes on when it is started again.
set -euo pipefail
# shellcheck source=local/path.sh
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/path.sh"
exec python3 -m espnet_speechllm_xl tables "$@"
