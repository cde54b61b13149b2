/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/small_tokenizer.h"

/* clang-format off */
static const char head[] =
    "{\"version\": \"1.0\",\n"
    "\"truncation\": null,\n"
    "\"padding\": null,\n"
    "\"added_tokens\": [\n"
    "{\"id\": 0, \"content\": \"<bos>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true},\n"
    "{\"id\": 1, \"content\": \"<eos>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true},\n"
    "{\"id\": 2, \"content\": \"<think>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": false},\n"
    "{\"id\": 3, \"content\": \"<thinking>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": true, \"special\": false}],\n"
    "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": []},\n"
    "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n"
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\p{N}{1,3}\"}, \"behavior\": \"Isolated\", \"invert\": false},\n"
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"[\\u4e00-\\u9fa5\\u3040-\\u309f\\u30a0-\\u30ff]+\"}, \"behavior\": \"Isolated\", \"invert\": false},\n"
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"[!\\\"#$%&'()*+,\\\\-./:;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}, \"behavior\": \"Isolated\", \"invert\": false},\n"
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}]},\n"
    "\"post_processor\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": false, \"use_regex\": true},\n"
    "\"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},\n"
    "\"model\": {\"type\": \"BPE\",\n"
    "\"dropout\": null,\n"
    "\"unk_token\": null,\n"
    "\"continuing_subword_prefix\": null,\n"
    "\"end_of_word_suffix\": null,\n"
    "\"fuse_unk\": false,\n"
    "\"byte_fallback\": false,\n"
    "\"vocab\": {\"<bos>\": 0, \"<eos>\": 1,\n";
static const char tail[] =
    "\"he\": 260, \"ll\": 261, \"hell\": 262, \"hello\": 263, \"aa\": 264, \"aaaa\": 265,\n"
    "\"\\u0120\\u0120\": 266, \"\\u0120h\": 267, \"\\u0120hello\": 268, \"\\u00e4\\u00b8\": 269},\n"
    "\"merges\": [\"h e\",\n"
    "\"l l\",\n"
    "\"he ll\",\n"
    "[\"hell\", \"o\"],\n"
    "\"a a\",\n"
    "\"aa aa\",\n"
    "\"\\u0120 \\u0120\",\n"
    "\"\\u0120 h\",\n"
    "\"\\u0120 hello\",\n"
    "\"\\u00e4 \\u00b8\"]}}\n";

/* clang-format on */

char *
small_tokenizer_json(void)
{
    enum { ROOM = 16 << 10 };

    char *json = malloc(ROOM);
    int n, letter = 0x100;

    if (json == NULL)
        abort();
    n = snprintf(json, ROOM, "%s", head);
    for (int b = 0; b < 256; b++) {
        const bool shown = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) ||
                           b >= 0xae;

        n += snprintf(json + n, (size_t)(ROOM - n), "\"\\u%04x\": %d,\n",
                      (unsigned)(shown ? b : letter++), SMALL_BYTES + b);
    }
    n += snprintf(json + n, (size_t)(ROOM - n), "%s", tail);
    assert(n < ROOM);
    return json;
}
