/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer.json to tables (spec 11). Once, at start, in one thread.
 *
 * The format can express far more than this family of models uses. Each setting is checked:
 * what the encoder does not do is refused by name and not passed over, so that a tokenizer
 * which loads gives the ids of the reference. A damaged file gets an error that says where.
 */
#include <config.h> /* "config.h" would be model/config.h */

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/file.h"
#include "base/utf8.h"
#include "model/tokenizer_private.h"

enum {
    FILE_MAX = 64 << 20,
    ALPHABET = 0x144, /* the byte alphabet's letters are U+0021 to U+0143 */
    MERGE_MAX = 1024  /* bytes of the two letters strings of a merge */
};

/* What loading needs and the tokenizer does not keep. */
struct loading {
    struct tokenizer *t;
    const json_t *vocab;
    const char **text;         /* owned [n_ids]: into the JSON; NULL where no token is */
    int16_t byte_of[ALPHABET]; /* -1: no letter of the alphabet */
};

static int
unsupported(struct err *e, const char *what)
{
    return err_set(e, ERR_MODEL_MISMATCH, 0, "%.160s is not supported", what);
}

static int
damaged(struct err *e, const char *what)
{
    return err_set(e, ERR_DAMAGED, 0, "%.160s", what);
}

/* Every key of an object must be in a list that ends in NULL. */
static int
only_keys(const json_t *o, const char *where, const char *const *known, struct err *e)
{
    const char *key;
    json_t *value;

    if (!json_is_object(o))
        return err_set(e, ERR_DAMAGED, 0, "%s is not an object", where);
    json_object_foreach((json_t *)o, key, value)
    {
        const char *const *k = known;

        while (*k != NULL && strcmp(*k, key) != 0)
            k++;
        if (*k == NULL)
            return err_set(e, ERR_MODEL_MISMATCH, 0, "%s.%.60s is not supported", where,
                           key);
    }
    return 0;
}

/* A key that may only be absent, null, false or (some writers) the empty string. */
static int
must_be_off(const json_t *o, const char *where, const char *key, struct err *e)
{
    const json_t *v = json_object_get(o, key);

    if (v == NULL || json_is_null(v) || json_is_false(v) ||
        (json_is_string(v) && json_string_length(v) == 0))
        return 0;
    return err_set(e, ERR_MODEL_MISMATCH, 0, "%s.%s is set: not supported", where, key);
}

static int
all_off(const json_t *o, const char *where, const char *const *keys, struct err *e)
{
    for (; *keys != NULL; keys++) {
        if (must_be_off(o, where, *keys, e) == -1)
            return -1;
    }
    return 0;
}

/* The "type" of one part of the pipeline. */
static const char *
type_of(const json_t *o)
{
    const char *s = json_string_value(json_object_get(o, "type"));

    return s != NULL ? s : "";
}

static int
wrong_type(const json_t *o, const char *where, struct err *e)
{
    return err_set(e, ERR_MODEL_MISMATCH, 0, "%s of type '%.60s' is not supported", where,
                   type_of(o));
}

/* A part that is absent, or (where `list` is its key) a Sequence of nothing. */
static bool
is_nothing(const json_t *o, const char *list)
{
    return o == NULL || json_is_null(o) ||
           (strcmp(type_of(o), "Sequence") == 0 &&
            json_is_array(json_object_get(o, list)) &&
            json_array_size(json_object_get(o, list)) == 0);
}

/* Parts that must not change text or ids: no normalizer, and only byte-level ends. */
static int
check_pipeline(const json_t *root, struct err *e)
{
    static const char *const keys[] = {
        "version", "truncation",    "padding",        "added_tokens", "normalizer",
        "model",   "pre_tokenizer", "post_processor", "decoder",      NULL};
    static const char *const off[] = {"truncation", "padding", NULL};
    const json_t *normalizer = json_object_get(root, "normalizer");
    const json_t *post = json_object_get(root, "post_processor");
    const json_t *decoder = json_object_get(root, "decoder");

    if (only_keys(root, "tokenizer", keys, e) == -1 ||
        all_off(root, "tokenizer", off, e) == -1)
        return -1;
    if (!is_nothing(normalizer, "normalizers"))
        return wrong_type(normalizer, "a normalizer", e);
    /* A ByteLevel post-processor moves offsets, which we do not report, and no ids. */
    if (!is_nothing(post, "processors") && strcmp(type_of(post), "ByteLevel") != 0)
        return wrong_type(post, "a post_processor", e);
    if (strcmp(type_of(decoder), "ByteLevel") != 0)
        return wrong_type(decoder, "a decoder", e);
    return 0;
}

static int
load_split(struct split *split, const json_t *o, struct err *e)
{
    static const char *const keys[] = {"type", "pattern", "behavior", "invert", NULL};
    static const char *const pattern_keys[] = {"Regex", NULL};
    const json_t *pattern = json_object_get(o, "pattern");
    const char *behavior = json_string_value(json_object_get(o, "behavior"));
    const char *regex;

    if (only_keys(o, "Split", keys, e) == -1 ||
        must_be_off(o, "Split", "invert", e) == -1 ||
        only_keys(pattern, "Split.pattern", pattern_keys, e) == -1)
        return -1;
    if (behavior == NULL || strcmp(behavior, "Isolated") != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0, "Split.behavior '%.60s' is not supported",
                       behavior != NULL ? behavior : "");
    regex = json_string_value(json_object_get(pattern, "Regex"));
    if (regex == NULL)
        return damaged(e, "Split.pattern.Regex is not a string");
    return split_add(split, regex, e);
}

/* Split stages, then ByteLevel, which must split no further. */
static int
load_pre_tokenizer(struct split *split, const json_t *root, struct err *e)
{
    static const char *const keys[] = {"type", "pretokenizers", NULL};
    static const char *const byte_keys[] = {"type", "add_prefix_space", "trim_offsets",
                                            "use_regex", NULL};
    static const char *const byte_off[] = {"add_prefix_space", NULL};
    const json_t *seq = json_object_get(root, "pre_tokenizer");
    const json_t *list = json_object_get(seq, "pretokenizers"), *last;
    const size_t n = json_array_size(list);

    if (strcmp(type_of(seq), "Sequence") != 0)
        return wrong_type(seq, "a pre_tokenizer", e);
    if (only_keys(seq, "pre_tokenizer", keys, e) == -1)
        return -1;
    if (n == 0)
        return damaged(e, "pre_tokenizer.pretokenizers is empty or no list");
    for (size_t i = 0; i + 1 < n; i++) {
        const json_t *o = json_array_get(list, i);

        if (strcmp(type_of(o), "Split") != 0)
            return wrong_type(o, "a pre_tokenizer before the last", e);
        if (load_split(split, o, e) == -1)
            return -1;
    }
    last = json_array_get(list, n - 1);
    if (strcmp(type_of(last), "ByteLevel") != 0)
        return wrong_type(last, "a last pre_tokenizer", e);
    if (only_keys(last, "ByteLevel", byte_keys, e) == -1 ||
        all_off(last, "ByteLevel", byte_off, e) == -1)
        return -1;
    /* Absent means true here. */
    if (!json_is_false(json_object_get(last, "use_regex")))
        return unsupported(e, "ByteLevel.use_regex other than false");
    return 0;
}

static int
check_model(const json_t *model, struct err *e)
{
    static const char *const keys[] = {"type",
                                       "vocab",
                                       "merges",
                                       "dropout",
                                       "unk_token",
                                       "continuing_subword_prefix",
                                       "fuse_unk",
                                       "end_of_word_suffix",
                                       "byte_fallback",
                                       "ignore_merges",
                                       NULL};
    static const char *const off[] = {"dropout",
                                      "unk_token",
                                      "fuse_unk",
                                      "continuing_subword_prefix",
                                      "end_of_word_suffix",
                                      "byte_fallback",
                                      "ignore_merges",
                                      NULL};

    if (strcmp(type_of(model), "BPE") != 0)
        return wrong_type(model, "a model", e);
    if (only_keys(model, "model", keys, e) == -1 || all_off(model, "model", off, e) == -1)
        return -1;
    if (!json_is_object(json_object_get(model, "vocab")))
        return damaged(e, "model.vocab is not an object");
    if (!json_is_array(json_object_get(model, "merges")))
        return damaged(e, "model.merges is not a list");
    return 0;
}

/* Notes that `id` is written `text`; an id or a token that comes twice is an error. */
static int
note_token(struct loading *l, const json_t *id, const char *text, struct err *e)
{
    const json_int_t i = json_integer_value(id);

    if (!json_is_integer(id) || i < 0 || i >= (json_int_t)l->t->n_ids)
        return err_set(
            e, ERR_DAMAGED, 0,
            "token '%.40s' has no id below %u, which is how many tokens there are", text,
            (unsigned)l->t->n_ids);
    if (l->text[i] != NULL)
        return err_set(e, ERR_DAMAGED, 0, "id %lld is both '%.40s' and '%.40s'",
                       (long long)i, l->text[i], text);
    l->text[i] = text;
    return 0;
}

static int
check_added(const json_t *o, struct err *e)
{
    static const char *const keys[] = {"id",     "content",    "single_word", "lstrip",
                                       "rstrip", "normalized", "special",     NULL};
    static const char *const off[] = {"single_word", "lstrip", "rstrip", NULL};
    const json_t *content = json_object_get(o, "content");

    if (only_keys(o, "added_tokens[]", keys, e) == -1 ||
        all_off(o, "added_tokens[]", off, e) == -1)
        return -1;
    if (!json_is_string(content) || json_string_length(content) == 0)
        return damaged(e, "an added token without content");
    return 0;
}

/* How many tokens there are: the vocabulary, and the added ones that it does not hold. */
static int
count_tokens(struct loading *l, const json_t *added, struct err *e)
{
    size_t n = json_object_size(l->vocab);

    if (!json_is_array(added))
        return damaged(e, "added_tokens is not a list");
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *o = json_array_get(added, i);

        if (check_added(o, e) == -1)
            return -1;
        n += json_object_get(l->vocab, json_string_value(json_object_get(o, "content"))) ==
             NULL;
    }
    l->t->n_ids = (uint32_t)n; /* the file is smaller than 64 MiB */
    l->text = calloc(n + 1, sizeof l->text[0]);
    l->t->at = calloc(n + 1, sizeof l->t->at[0]);
    l->t->added_kind = calloc(n + 1, sizeof l->t->added_kind[0]);
    if (l->text == NULL || l->t->at == NULL || l->t->added_kind == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu tokens", n);
    return 0;
}

/* With as many tokens as ids and no id given twice, none is left out. */
static int
note_tokens(struct loading *l, const json_t *added, struct err *e)
{
    const char *key;
    json_t *id;

    json_object_foreach((json_t *)l->vocab, key, id)
    {
        if (note_token(l, id, key, e) == -1)
            return -1;
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *o = json_array_get(added, i);
        const char *text = json_string_value(json_object_get(o, "content"));
        const json_t *in_vocab = json_object_get(l->vocab, text);

        id = json_object_get(o, "id");
        if (in_vocab == NULL && note_token(l, id, text, e) == -1)
            return -1;
        if (in_vocab != NULL && !json_equal(in_vocab, id))
            return err_set(e, ERR_DAMAGED, 0,
                           "the added token '%.40s' has another id in the vocabulary",
                           text);
        if (l->t->added_kind[json_integer_value(id)] != 0)
            return err_set(e, ERR_DAMAGED, 0, "the added token '%.40s' comes twice", text);
        l->t->added_kind[json_integer_value(id)] =
            1 +
            (json_is_true(json_object_get(o, "normalized")) ? ADDED_NORMALIZED : ADDED_RAW);
    }
    return 0;
}

/* GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, the others, in order,
 * for U+0100 and on. */
static void
make_alphabet(int16_t byte_of[ALPHABET])
{
    int next = 0x100;

    for (int i = 0; i < ALPHABET; i++)
        byte_of[i] = -1;
    for (int b = 0; b < 256; b++) {
        const bool shown = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) ||
                           (b >= 0xae);

        byte_of[shown ? b : next++] = (int16_t)b;
    }
}

/* Writes the bytes that a token of the vocabulary stands for; -1 if a letter is not in the
 * alphabet. Never longer than the text. */
static ptrdiff_t
from_alphabet(const int16_t byte_of[ALPHABET], const char *text, char *out)
{
    const size_t len = strlen(text);
    ptrdiff_t n = 0;

    for (size_t i = 0; i < len;) {
        const int k = utf8_char(text + i, len - i);
        const uint32_t c = k > 0 ? utf8_decode(text + i, k) : ALPHABET;

        if (c >= ALPHABET || byte_of[c] == -1)
            return -1;
        out[n++] = (char)byte_of[c];
        i += (size_t)k;
    }
    return n;
}

/* The bytes of all tokens, one after the other, and the token of each single byte. */
static int
load_bytes(struct loading *l, struct err *e)
{
    struct tokenizer *t = l->t;
    size_t room = 1, n = 0;

    for (uint32_t id = 0; id < t->n_ids; id++)
        room += strlen(l->text[id]);
    t->bytes = malloc(room);
    if (t->bytes == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu bytes of tokens", room);
    memset(t->bpe.byte_id, 0xff, sizeof t->bpe.byte_id);
    for (uint32_t id = 0; id < t->n_ids; id++) {
        const char *text = l->text[id];
        ptrdiff_t k = (ptrdiff_t)strlen(text);

        t->at[id] = n;
        if (t->added_kind[id] != 0)
            memcpy(t->bytes + n, text, (size_t)k);
        else
            k = from_alphabet(l->byte_of, text, t->bytes + n);
        if (k <= 0)
            return err_set(e, ERR_DAMAGED, 0,
                           "token %u is empty or not written in the byte alphabet",
                           (unsigned)id);
        if (k == 1 && t->added_kind[id] == 0)
            t->bpe.byte_id[(uint8_t)t->bytes[n]] = id;
        n += (size_t)k;
    }
    t->at[t->n_ids] = n;
    for (int b = 0; b < 256; b++) {
        if (t->bpe.byte_id[b] == UINT32_MAX)
            return err_set(e, ERR_DAMAGED, 0, "the vocabulary has no token for byte 0x%02x",
                           (unsigned)b);
    }
    return 0;
}

/* The two sides of a merge, which older files write as one string with a space in it. */
static int
merge_sides(const json_t *m, char both[MERGE_MAX], const char **left, const char **right)
{
    const char *a, *b;
    size_t n;

    if (json_is_string(m)) {
        a = json_string_value(m);
        b = strchr(a, ' ');
        if (b == NULL || strchr(b + 1, ' ') != NULL)
            return -1;
        n = (size_t)(b - a);
        b++;
    } else {
        a = json_string_value(json_array_get(m, 0));
        b = json_string_value(json_array_get(m, 1));
        if (json_array_size(m) != 2 || a == NULL || b == NULL)
            return -1;
        n = strlen(a);
    }
    if (n + strlen(b) + 2 > MERGE_MAX)
        return -1;
    memcpy(both, a, n);
    both[n] = '\0';
    memcpy(both + n + 1, b, strlen(b) + 1);
    *left = both;
    *right = both + n + 1;
    return 0;
}

static int
load_merges(struct loading *l, const json_t *merges, struct err *e)
{
    const size_t n = json_array_size(merges);

    if (bpe_init(&l->t->bpe, n, e) == -1)
        return -1;
    for (size_t i = 0; i < n; i++) {
        char both[MERGE_MAX], whole[MERGE_MAX];
        const char *left, *right;
        const json_t *id[3];

        if (merge_sides(json_array_get(merges, i), both, &left, &right) == -1)
            return err_set(e, ERR_DAMAGED, 0, "merge %zu is not a pair of tokens", i);
        snprintf(whole, sizeof whole, "%s%s", left, right);
        id[0] = json_object_get(l->vocab, left);
        id[1] = json_object_get(l->vocab, right);
        id[2] = json_object_get(l->vocab, whole);
        for (int k = 0; k < 3; k++) {
            if (id[k] == NULL || l->t->added_kind[json_integer_value(id[k])] != 0)
                return err_set(e, ERR_DAMAGED, 0,
                               "merge %zu: '%.60s' is not a token of the vocabulary", i,
                               k == 0   ? left
                               : k == 1 ? right
                                        : whole);
        }
        if (!bpe_add(&l->t->bpe, (uint32_t)json_integer_value(id[0]),
                     (uint32_t)json_integer_value(id[1]), (uint32_t)i,
                     (uint32_t)json_integer_value(id[2])))
            return err_set(e, ERR_DAMAGED, 0, "merge %zu comes twice", i);
    }
    return 0;
}

static int
by_bytes(const void *a, const void *b, void *arg)
{
    const struct tokenizer *t = arg;
    size_t la, lb;
    const char *pa = tokenizer_bytes(t, *(const uint32_t *)a, &la);
    const char *pb = tokenizer_bytes(t, *(const uint32_t *)b, &lb);
    const int c = memcmp(pa, pb, la < lb ? la : lb);

    return c != 0 ? c : la < lb ? -1 : la > lb;
}

/* The added tokens in order of their bytes, each in its set. */
static int
load_added(struct tokenizer *t, struct err *e)
{
    uint32_t *all, n = 0;
    size_t la;

    all = calloc((size_t)t->n_ids + 1, sizeof all[0]);
    for (unsigned i = 0; i < ADDED_SETS; i++)
        t->added[i].id = calloc((size_t)t->n_ids + 1, sizeof t->added[i].id[0]);
    if (all == NULL || t->added[ADDED_RAW].id == NULL ||
        t->added[ADDED_NORMALIZED].id == NULL) {
        free(all);
        return err_set(e, ERR_QUOTA, errno, "no memory for added tokens");
    }
    for (uint32_t id = 0; id < t->n_ids; id++) {
        if (t->added_kind[id] != 0)
            all[n++] = id;
    }
    qsort_r(all, n, sizeof all[0], by_bytes, t);
    for (uint32_t i = 0; i < n; i++) {
        struct added_set *set = &t->added[t->added_kind[all[i]] - 1];
        const char *text = tokenizer_bytes(t, all[i], &la);

        if (i > 0 && by_bytes(&all[i - 1], &all[i], t) == 0) {
            err_set(e, ERR_DAMAGED, 0, "the added tokens %u and %u are the same text",
                    (unsigned)all[i - 1], (unsigned)all[i]);
            free(all);
            return -1;
        }
        set->id[set->n++] = all[i];
        set->begins[(uint8_t)text[0]] = true;
    }
    free(all);
    return 0;
}

static int
load_all(struct loading *l, const json_t *root, struct err *e)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *added = json_object_get(root, "added_tokens");

    if (check_pipeline(root, e) == -1 || check_model(model, e) == -1 ||
        load_pre_tokenizer(&l->t->split, root, e) == -1)
        return -1;
    l->vocab = json_object_get(model, "vocab");
    make_alphabet(l->byte_of);
    if (count_tokens(l, added, e) == -1 || note_tokens(l, added, e) == -1 ||
        load_bytes(l, e) == -1 || load_merges(l, json_object_get(model, "merges"), e) == -1)
        return -1;
    return load_added(l->t, e);
}

struct tokenizer *
tokenizer_parse(const char *json, size_t len, struct err *e)
{
    struct loading l = {.t = calloc(1, sizeof *l.t)};
    json_error_t why;
    json_t *root = NULL;
    int rc = -1;

    if (l.t == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a tokenizer");
        return NULL;
    }
    if (len > FILE_MAX)
        err_set(e, ERR_INVALID, 0, "a tokenizer of more than %d bytes", FILE_MAX);
    else if ((root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &why)) == NULL)
        err_set(e, ERR_DAMAGED, 0, "line %d, column %d: %.120s", why.line, why.column,
                why.text);
    else
        rc = load_all(&l, root, e);
    free(l.text);
    json_decref(root);
    if (rc == -1) {
        tokenizer_free(l.t);
        return NULL;
    }
    return l.t;
}

struct tokenizer *
tokenizer_load(const char *dir, struct err *e)
{
    struct tokenizer *t = NULL;
    char *path = NULL, *json;
    size_t len;

    if (asprintf(&path, "%s/tokenizer.json", dir) == -1) {
        err_set(e, ERR_QUOTA, errno, "no memory for a path");
        return NULL;
    }
    json = file_read(path, FILE_MAX, &len, e);
    if (json != NULL) {
        t = tokenizer_parse(json, len, e);
        if (t == NULL)
            err_prefix(e, "%s", path);
    }
    free(json);
    free(path);
    return t;
}
