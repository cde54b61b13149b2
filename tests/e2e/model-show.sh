#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# fathom-model as a user sees it: totals of the published models, the small model verified, the
# tokenizer's vectors, and what it says and returns when something is wrong.
: "${srcdir:=.}" "${top_builddir:=.}"
model=$top_builddir/tools/fathom-model
tmp=$(mktemp -d) || exit 99
trap 'rm -rf "$tmp"' EXIT
n=0

# result NAME WHAT_IS_WRONG
result() {
    n=$((n + 1))
    if [ -z "$2" ]; then
        echo "ok $n - $1"
    else
        echo "not ok $n - $1"
        echo "$2" | sed 's/^/# /'
    fi
}

# says NAME STATUS FILE TEXT...: run status and each text in the file
says() {
    name=$1 want=$2 file=$3 wrong=
    shift 3
    [ "$status" -eq "$want" ] || wrong="exit status $status, not $want"
    for text in "$@"; do
        grep -qF -- "$text" "$file" || wrong="$wrong
no \"$text\" in:
$(head -n 20 "$file")"
    done
    result "$name" "$wrong"
}

run() {
    "$model" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    status=$?
    tr -s ' ' <"$tmp/out" >"$tmp/words"
}

run show "$srcdir/tests/data/flash"
says 'Flash: totals' 0 "$tmp/words" \
    'backbone 67,612 284,332,240,471 156,015,698,140' \
    'checkpoint 69,187 290,942,289,362 159,609,485,896' \
    'KV per token 3,514 bytes' 'weights none in this folder' \
    'layers 43 (2 window, 21 CSA, 20 HCA) and 1 draft' \
    'session of 1,024 19,019,008 bytes' 'session of 32,768 130,575,360 bytes' \
    'session of 131,072 476,040,192 bytes' 'session of 1,048,576 3,700,378,624 bytes'
lines=$(grep -c '^[0-9][0-9]* [CHw]' "$tmp/words")
result 'Flash: a line for each layer' "$([ "$lines" -eq 43 ] || echo "$lines lines, not 43")"

run show "$srcdir/tests/data/pro"
says 'Pro: totals' 0 "$tmp/words" \
    ' 1,572,997,201,763 850,748,205,004' \
    'checkpoint 145,116 1,598,837,347,742 864,704,792,696' \
    'KV per token 5,031 bytes' 'session of 1,048,576 5,299,115,008 bytes'

run show "$srcdir/models/fathom-mini"
says 'fathom-mini: weights are complete' 0 "$tmp/words" 'weights complete' 'fingerprint ' \
    'checkpoint 1,186 36,685,718 37,291,516'
run show --json "$srcdir/models/fathom-mini"
says 'the same as JSON' 0 "$tmp/out" '"weights": "complete"' '"bytes_per_token": 206' \
    '"bytes": 37291516'

# One byte short, and another model's config beside the weights.
cp "$srcdir/models/fathom-mini/config.json" "$tmp/config.json"
size=$(wc -c <"$srcdir/models/fathom-mini/model.safetensors")
head -c $((size - 1)) "$srcdir/models/fathom-mini/model.safetensors" >"$tmp/model.safetensors"
run show "$tmp"
says 'a file cut by one byte' 74 "$tmp/err" 'cut short'
run show --json "$tmp"
says 'the same as JSON' 74 "$tmp/out" '"weights": "damaged"'
cp "$srcdir/tests/golden/flash-tiny/model.safetensors" "$tmp/model.safetensors"
run show "$tmp"
says 'weights of another model' 74 "$tmp/err" \
    'fathom-model: embed.weight: BF16 [512, 128]; want BF16 [8192, 384]' \
    'fathom-model: layers.7.ffn.experts.15.w3.weight: missing; want I8 [128, 192]'

sed 's/"deepseek_v4"/"deepseek_v41"/' "$srcdir/tests/data/flash/config.json" >"$tmp/config.json"
run show "$tmp"
says 'another architecture' 78 "$tmp/err" 'model_type is "deepseek_v41"'
run show "$tmp/none"
says 'no such folder' 66 "$tmp/err" 'fathom-model: ' 'No such file'
run show
says 'no folder' 64 "$tmp/err" 'usage:'
run sing "$tmp"
says 'no such command' 64 "$tmp/err" 'usage:'
"$model" show "$srcdir/tests/data/flash" >/dev/full 2>"$tmp/err"
status=$?
says 'a full disk' 74 "$tmp/err" 'standard output'

vectors=$top_builddir/tests/tokenizer
"$model" tokenize "$top_builddir/tests/tokenizer" <"$vectors/vectors.jsonl" >"$tmp/out" 2>"$tmp/err"
status=$?
sed 's/^.*, "ids": /{"ids": /' "$vectors/vectors.jsonl" >"$tmp/want"
says 'tokenize: the vectors' 0 "$tmp/out" '{"ids": ['
result 'tokenize: every vector as the reference has it' "$(
    [ "$status" -eq 0 ] || cat "$tmp/err"
    [ -s "$tmp/want" ] || echo 'no vectors'
    diff "$tmp/want" "$tmp/out" 2>&1 | head -n 10
)"

# bad NAME LINE: a good line, then this one, then another that must not be read
bad() {
    printf '{"t": "a"}\n%s\n{"t": "b"}\n' "$2" |
        "$model" tokenize "$srcdir/models/fathom-mini" >"$tmp/out" 2>"$tmp/err"
    status=$?
    [ "$(wc -l <"$tmp/out")" -eq 1 ] || echo 'not one line out' >"$tmp/err"
    says "tokenize: $1" 65 "$tmp/err" 'fathom-model: line 2: '
}
bad 'not JSON' '{"t": "a'
bad 'an empty line' ''
bad 'no text' '{"ids": [1]}'
bad 'text that is a number' '{"t": 7}'
bad 'invalid UTF-8' "$(printf '{"t": "\377"}')"
printf '{"t": "a\\u0000b"}' | "$model" tokenize "$srcdir/models/fathom-mini" >"$tmp/out" 2>"$tmp/err"
status=$?
says 'tokenize: a NUL and no newline at the end' 0 "$tmp/out" '{"ids": ['

echo "1..$n"
