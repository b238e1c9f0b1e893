#!/usr/bin/env bash
# sentencepiece: the offsets of pieces, from 0.2.1 to 0.2.3.  Found 2026-11-29.
#
# One would guess that a patch release keeps `encode(text, out_type="immutable_proto")`, whose pieces tell where in the
# text each of them begins and ends, or that what takes its place counts as it did.
# In 0.2.1 the begin and end of a piece are characters.  In 0.2.3 that type is refused; `out_type="proto"` is there for it,
# and its begin and end are bytes of UTF-8, so that they differ from the first letter on that is not ASCII.
#
# usage: findings/sentencepiece_offsets_in_bytes.sh     needs python3 (3.10 to 3.13) and PyPI
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 0.2.1 0.2.3; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q --disable-pip-version-check "sentencepiece==$version" protobuf
done
cat >"$folder/try.py" <<'PY'
import io, sentencepiece
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["né à côté", "à côté né"] * 20), model_writer=model, model_type="char", vocab_size=12,
    hard_vocab_limit=False, minloglevel=2,
)
tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
for kind in ("immutable_proto", "proto"):
    try:
        pieces = tokenizer.encode("né à", out_type=kind)
        pieces = getattr(pieces, "pieces", pieces)
        print(kind, [(piece.surface, piece.begin, piece.end) for piece in pieces])
    except Exception as error:
        print(kind, type(error).__name__)
PY
for version in 0.2.1 0.2.3; do
  echo "$version"
  "$folder/$version/bin/python" "$folder/try.py" 2>&1
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' && echo "as found"
0.2.1
immutable_proto [('', 0, 0), ('n', 0, 1), ('é', 1, 2), (' ', 2, 3), ('à', 3, 4)]
proto AttributeError
0.2.3
immutable_proto ValueError
proto [('', 0, 0), ('n', 0, 1), ('é', 1, 3), (' ', 3, 4), ('à', 4, 6)]
SEEN
