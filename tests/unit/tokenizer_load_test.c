/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer.json files that must be refused, each with an error that says why: a small valid
 * one with one thing changed. Then any damage at all: an error or a tokenizer, never a crash.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "model/tokenizer.h"
#include "tests/small_tokenizer.h"
#include "tests/test.h"

struct change {
    const char *from, *to; /* the first occurrence of `from` becomes `to` */
    enum err_code code;    /* ERR_NONE: still loads */
    const char *says;
};

static const struct change changes[] = {
    /* what is the same tokenizer */
    {"\"version\": \"1.0\",", "", ERR_NONE, ""},
    {"{\"type\": \"Sequence\", \"normalizers\": []}", "null", ERR_NONE, ""},
    {"\"fuse_unk\": false", "\"ignore_merges\": false", ERR_NONE, ""},
    {"\"continuing_subword_prefix\": null", "\"continuing_subword_prefix\": \"\"", ERR_NONE,
     ""},

    /* what we do not do */
    {"\"truncation\": null", "\"truncation\": {\"max_length\": 5}", ERR_MODEL_MISMATCH,
     "truncation"},
    {"\"padding\": null", "\"padding\": {}", ERR_MODEL_MISMATCH, "padding"},
    {"\"padding\": null", "\"stuffing\": null", ERR_MODEL_MISMATCH, "stuffing"},
    {"\"normalizers\": []", "\"normalizers\": [{\"type\": \"NFC\"}]", ERR_MODEL_MISMATCH,
     "normalizer"},
    {"{\"type\": \"Sequence\", \"normalizers\": []}", "{\"type\": \"NFC\"}",
     ERR_MODEL_MISMATCH, "NFC"},
    {"\"lstrip\": false", "\"lstrip\": true", ERR_MODEL_MISMATCH, "lstrip"},
    {"\"rstrip\": false", "\"rstrip\": true", ERR_MODEL_MISMATCH, "rstrip"},
    {"\"single_word\": false", "\"single_word\": true", ERR_MODEL_MISMATCH, "single_word"},
    {"\"single_word\": false", "\"one_word\": false", ERR_MODEL_MISMATCH, "one_word"},
    {"{\"type\": \"Split\"", "{\"type\": \"Digits\"", ERR_MODEL_MISMATCH, "Digits"},
    {"\"Isolated\"", "\"Removed\"", ERR_MODEL_MISMATCH, "Removed"},
    {"\"invert\": false", "\"invert\": true", ERR_MODEL_MISMATCH, "invert"},
    {"{\"Regex\"", "{\"String\"", ERR_MODEL_MISMATCH, "String"},
    {"\\\\p{N}", "\\\\p{Nd}", ERR_MODEL_MISMATCH, "'\\p'"},
    {"\\\\p{N}", "\\\\d", ERR_MODEL_MISMATCH, "'\\d'"},
    {"\\\\p{N}", "[a-z&&[^b]]", ERR_MODEL_MISMATCH, "class within"},
    {"\\\\p{N}", "[]a]", ERR_MODEL_MISMATCH, "begins with ']'"},
    {"\\\\p{N}", "^\\\\p{N}", ERR_MODEL_MISMATCH, "'^'"},
    {"\\\\p{N}", "(?i)a", ERR_MODEL_MISMATCH, "(?i"},
    {"\\\\p{N}", "(*UCP)a", ERR_MODEL_MISMATCH, "(*"},
    {"\\\\p{N}{1,3}", "\\\\p{N}{0,3}", ERR_MODEL_MISMATCH, "matches nothing"},
    {"\"use_regex\": false", "\"use_regex\": true", ERR_MODEL_MISMATCH, "use_regex"},
    {", \"use_regex\": false", "", ERR_MODEL_MISMATCH, "use_regex"},
    {"\"add_prefix_space\": false", "\"add_prefix_space\": true", ERR_MODEL_MISMATCH,
     "add_prefix_space"},
    {"\"post_processor\": {\"type\": \"ByteLevel\"",
     "\"post_processor\": {\"type\": \"TemplateProcessing\"", ERR_MODEL_MISMATCH,
     "TemplateProcessing"},
    {"\"decoder\": {\"type\": \"ByteLevel\"", "\"decoder\": {\"type\": \"Metaspace\"",
     ERR_MODEL_MISMATCH, "Metaspace"},
    {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", ERR_MODEL_MISMATCH, "Unigram"},
    {"\"dropout\": null", "\"dropout\": 0.1", ERR_MODEL_MISMATCH, "dropout"},
    {"\"unk_token\": null", "\"unk_token\": \"<unk>\"", ERR_MODEL_MISMATCH, "unk_token"},
    {"\"fuse_unk\": false", "\"fuse_unk\": true", ERR_MODEL_MISMATCH, "fuse_unk"},
    {"\"fuse_unk\": false", "\"ignore_merges\": true", ERR_MODEL_MISMATCH, "ignore_merges"},
    {"\"byte_fallback\": false", "\"byte_fallback\": true", ERR_MODEL_MISMATCH,
     "byte_fallback"},
    {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"", ERR_MODEL_MISMATCH,
     "end_of_word_suffix"},

    /* what is broken */
    {"{\"version\"", "[\"version\"", ERR_DAMAGED, "line 1"},
    {"\"padding\": null", "\"truncation\": null", ERR_DAMAGED, "duplicate"},
    {"\\\\p{N}{1,3}", "(\\\\p{N}", ERR_DAMAGED, "split pattern"},
    {"\"pretokenizers\": [", "\"pretokenizers\": [], \"x\": [", ERR_MODEL_MISMATCH, "x"},
    {"{\"Regex\": \"\\\\p{N}{1,3}\"}", "{\"Regex\": 5}", ERR_DAMAGED, "Regex"},
    {"{\"Regex\": \"\\\\p{N}{1,3}\"}", "5", ERR_DAMAGED, "pattern"},
    {"\"content\": \"<think>\"", "\"content\": \"<eos>\"", ERR_DAMAGED, "has no id"},
    {"\"content\": \"<think>\"", "\"content\": \"\"", ERR_DAMAGED, "without content"},
    {"\"content\": \"<think>\"", "\"content\": \"<thinking>\"", ERR_DAMAGED, "same text"},
    {"{\"id\": 2", "{\"id\": 1", ERR_DAMAGED, "id 1"},
    {"{\"id\": 2", "{\"id\": -1", ERR_DAMAGED, "<think>"},
    {"{\"id\": 2", "{\"id\": 99999999999", ERR_DAMAGED, "<think>"},
    {"{\"id\": 2", "{\"id\": \"2\"", ERR_DAMAGED, "<think>"},
    {"{\"id\": 0", "{\"id\": 7", ERR_DAMAGED, "another id"},
    {"\"hello\": 263", "\"hello\": 262", ERR_DAMAGED, "262"},
    {"\"hello\": 263", "\"hello\": 270", ERR_DAMAGED, "hello"},
    {"\"hello\": 263", "\"hello\": 263.0", ERR_DAMAGED, "hello"},
    {"\"hello\": 263", "\"hell\\u4e2d\": 263", ERR_DAMAGED, "byte alphabet"},
    {"\"hello\": 263", "\"\": 263", ERR_DAMAGED, "empty"},
    {"\"\\u0021\": 37", "\"!!\": 37", ERR_DAMAGED, "byte 0x21"},
    {"[\"h e\",", "[\"h x\",", ERR_DAMAGED, "merge 0"},
    {"[\"h e\",", "[\"he\",", ERR_DAMAGED, "merge 0"},
    {"[\"h e\",", "[\"h e l\",", ERR_DAMAGED, "merge 0"},
    {"[\"h e\",", "[\"a a\",", ERR_DAMAGED, "merge 4 comes twice"},
    {"[\"hell\", \"o\"]", "[\"hell\"]", ERR_DAMAGED, "merge 3"},
    {"[\"hell\", \"o\"]", "[\"hell\", 5]", ERR_DAMAGED, "merge 3"},
    {"[\"hell\", \"o\"]", "7", ERR_DAMAGED, "merge 3"},
    {"\"he\": 260", "\"he\": 260, \"<think>\": 2", ERR_NONE, ""},
    {"\"merges\": [", "\"merges\": {}, \"x\": [", ERR_MODEL_MISMATCH, "x"},
    {"\"merges\": [", "\"x\": [", ERR_MODEL_MISMATCH, "x"},
    {"\"added_tokens\": [", "\"added_tokens\": 5, \"x\": [", ERR_MODEL_MISMATCH, "x"},
};

static void
test_changes(void **state)
{
    char *json = small_tokenizer_json();

    (void)state;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const struct change *c = &changes[i];
        const char *at = strstr(json, c->from);
        const size_t room = strlen(json) + strlen(c->to) + 1;
        char *changed = malloc(room);
        struct err e = {0};
        struct tokenizer *t;

        assert_non_null(changed);
        if (at == NULL)
            fail_msg("case %zu: '%s' is not in the text", i, c->from);
        snprintf(changed, room, "%.*s%s%s", (int)(at - json), json, c->to,
                 at + strlen(c->from));
        t = tokenizer_parse(changed, strlen(changed), &e);
        if ((t == NULL) != (c->code != ERR_NONE) || e.code != c->code ||
            strstr(e.text, c->says) == NULL)
            fail_msg("case %zu, '%s': %s: %s", i, c->to, err_name(e.code), e.text);
        tokenizer_free(t);
        free(changed);
    }
    free(json);
}

/* Cut off anywhere: refused. With any bit flipped: refused, or another tokenizer. */
static void
test_damage(void **state)
{
    char *json = small_tokenizer_json();
    const size_t len = strlen(json);
    int refused = 0, loaded = 0;

    (void)state;
    for (size_t n = 0; n < len - 2; n += 7) {
        struct err e = {0};

        assert_null(tokenizer_parse(json, n, &e));
        assert_int_equal(e.code, ERR_DAMAGED);
    }
    for (size_t i = 0; i < len * 8; i += 11) {
        struct err e = {0};
        struct tokenizer *t;

        json[i / 8] ^= (char)(1 << i % 8);
        t = tokenizer_parse(json, len, &e);
        json[i / 8] ^= (char)(1 << i % 8);
        assert_true(t != NULL || (e.code != ERR_NONE && e.text[0] != '\0'));
        refused += t == NULL;
        loaded += t != NULL;
        tokenizer_free(t);
    }
    assert_true(refused > 1000 && loaded > 10);
    free(json);
}

static void
test_no_such_folder(void **state)
{
    struct err e = {0};

    (void)state;
    assert_null(tokenizer_load("/nowhere/at/all", &e));
    assert_int_equal(e.code, ERR_NOT_FOUND);
    assert_non_null(strstr(e.text, "/nowhere/at/all/tokenizer.json"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_no_such_folder),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
