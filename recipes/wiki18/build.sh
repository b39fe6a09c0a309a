#!/usr/bin/env bash
# Wikipedia of 2018 in 21 million passages (Search-R1's corpus) -> an index. See README.md here.
#
#   bash recipes/wiki18/build.sh               # fetches the dump unless CORPUS is there
#   CORPUS=/data/wiki.jsonl.gz OUT=/data/wiki-index bash recipes/wiki18/build.sh
#   DRY_RUN=1 bash recipes/wiki18/build.sh     # the same steps on 2,000 made-up passages, without network, in
#                                              # DRY_RUN_OUT/wiki18 (default runs/dry_run/wiki18) whatever else is set
set -euo pipefail

DRY_RUN=${DRY_RUN:-0}
DATA=${DATA:-data/wiki18}
REPO=${REPO:-PeterJinGo/wiki-18-corpus}
FILE=${FILE:-wiki-18.jsonl.gz}
CORPUS=${CORPUS:-$DATA/$FILE}
OUT=${OUT:-$DATA/bm25}
MTGRPO=${MTGRPO:-mtgrpo}
PYTHON=${PYTHON:-python3}
# Of the file in REPO; SHA256= (empty) skips the comparison, for another dump.
SHA256=${SHA256-7abd929223399cd63c52b499f289bf4f9039be1e9f8c43e1cb3938305b2317db}
NEED_GB=${NEED_GB:-35}  # the index, and as much again while segments are merged

fail() { echo "build.sh: $*" >&2; exit 1; }

if [ "$DRY_RUN" = 1 ]; then
    SHA256=
    NEED_GB=1
    # Never where the real corpus and index are looked for: a run would search in made-up passages without a word.
    DATA=${DRY_RUN_OUT:-runs/dry_run}/wiki18
    CORPUS=$DATA/made-up.jsonl.gz
    OUT=$DATA/made-up-bm25
    mkdir -p "$DATA"
    # As the real file: lines of {id, contents} in a tar archive under the name of a gzip file.
    "$PYTHON" - "$CORPUS" <<'MAKE'
import io, json, random, sys, tarfile

words = [f"word{number}" for number in range(2000)]
rng = random.Random(0)
lines = (
    json.dumps({"id": str(n), "contents": f'"Article {n // 4}"\n' + " ".join(rng.choices(words, k=100))})
    for n in range(2000)
)
text = "".join(line + "\n" for line in lines).encode()
with tarfile.open(sys.argv[1], "w:gz") as archive:
    info = tarfile.TarInfo("wiki-18.jsonl")
    info.size = len(text)
    archive.addfile(info, io.BytesIO(text))
MAKE
elif [ ! -e "$CORPUS" ]; then
    command -v hf > /dev/null || fail "no $CORPUS, and no command 'hf' to fetch it: pip install huggingface_hub"
    [ "$CORPUS" = "$DATA/$FILE" ] || fail "there is no file $CORPUS; without CORPUS= it is fetched to $DATA/$FILE"
    hf download --repo-type dataset "$REPO" "$FILE" --local-dir "$DATA"
fi

if [ -n "$SHA256" ] && ! echo "$SHA256  $CORPUS" | sha256sum --check --quiet; then
    size=$(wc -c < "$CORPUS")
    # Dry runs of earlier versions left their passages here.
    [ "$size" -ge 1000000000 ] \
        || fail "$CORPUS has $size bytes, and the dump has 5.1 GB: it is made up or cut off; remove it and start again"
    fail "$CORPUS is not the file this recipe was written for: fetch it again, or SHA256= to take it as it is"
fi

mkdir -p "$(dirname "$OUT")"
free_gb=$(($(df -Pk "$(dirname "$OUT")" | awk 'NR == 2 {print $4}') / 1000000))
[ "$free_gb" -ge "$NEED_GB" ] || fail "$free_gb GB free for $OUT, $NEED_GB needed: give another OUT, or NEED_GB="

"$MTGRPO" index "$CORPUS" --out "$OUT"
"$MTGRPO" index --check "$OUT"
OUT=$(cd "$OUT" && pwd)
if [ "$DRY_RUN" = 1 ]; then
    echo "dry run passed: an index of made-up passages is in $OUT, for nothing but a look at it"
else
    echo "serve it: $MTGRPO serve $OUT --host 0.0.0.0   or, in every worker: export MTGRPO_INDEX=$OUT"
fi
