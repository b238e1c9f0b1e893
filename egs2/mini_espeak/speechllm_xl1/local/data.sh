#!/usr/bin/env bash
# Makes data/{train,dev,test} of the embedded corpus, in the directory it is called from (the recipe's).
#
#   local/data.sh [--size tiny|small|large] [--seed N] [--nj N]
#
# tiny: 24 utterances, to try the recipe out; small: about 1 h of training speech and a test set of 1100 words; large: 5 h and more than 10,000 words.
set -euo pipefail

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
root=$(cd "${here}/../../../.." && pwd)
export LC_ALL=C OMP_NUM_THREADS=1 PYTHONPATH="${root}${PYTHONPATH:+:${PYTHONPATH}}"

for module in numpy soundfile soxr espeakng_loader; do
    if ! python3 -c "import ${module}" 2>/dev/null; then
        echo "data.sh: $(command -v python3 || echo python3) has no module ${module}; run local/install.sh of the repository" >&2
        exit 1
    fi
done

exec python3 "${here}/make_corpus.py" --out data "$@"
