#!/usr/bin/env bash
# torchaudio 2.11.1 beside torch 2.11.0: its metadata allow it, its library does not load.  Found 2026-11-29.
#
# torchaudio 2.11.1 asks for torch 2.11 or later, so one would guess that pip, where something keeps torch at 2.11.0,
# makes an environment that works.  It installs both without a word; `import torchaudio` then raises OSError, because the
# library wants a symbol that came after torch 2.11.  torchaudio 2.11.0 loads, with torch 2.14 as well.
#
# usage: findings/torchaudio_2_11_1_with_torch_2_11.sh     needs python3 (3.10 to 3.13), PyPI, 6 GB for a while
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip() { "$folder/env/bin/pip" install -q --disable-pip-version-check "$@"; }
pip numpy "torch==2.11.0"
for version in 2.11.1 2.11.0; do
  pip "torchaudio==$version" # with its dependencies: pip finds them satisfied
  printf 'torchaudio %s: ' "$version"
  { "$folder/env/bin/python" -c 'import torchaudio; print("loads")' 2>&1 || true; } | tail -n 1 | sed 's/:.*//'
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' && echo "as found"
torchaudio 2.11.1: OSError
torchaudio 2.11.0: loads
SEEN
