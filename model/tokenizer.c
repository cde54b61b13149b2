/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text to token ids (spec 11): cut at added tokens, at bytes that are not UTF-8, into words,
 * then merge byte pairs within each word. Any thread; a call's state is on its stack.
 *
 * Bytes that are not UTF-8 never reach the expressions: a run of them is a word of its own,
 * as if it stood between two pieces. Most words of a text have come before, so a call keeps
 * a table of the last word in each slot: not copies, but where it stands in the text and
 * where its ids stand in the output. A word in the table costs a hash and two copies.
 */
#include <config.h> /* "config.h" would be model/config.h */

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/utf8.h"
#include "model/tokenizer_private.h"

enum {
    CACHE_MIN = 16, /* slots */
    CACHE_MAX = 1 << 14,
    CACHE_WORD_MAX = 1024, /* bytes; longer ones are rarely repeated */
    BAD_RUN_MAX = 1024,    /* bytes, before a run is cut */
};

struct cached {
    size_t at, ids_at; /* bytes into the text and the output */
    uint32_t len;      /* 0: a free slot */
    uint32_t ids_len;
};

/* One call of tokenizer_encode. */
struct encoding {
    const struct tokenizer *t;
    const char *text;
    size_t run_at; /* where the run that is being split begins */
    struct buf *ids;
    struct bpe_work work;
    struct cached *cache; /* owned */
    size_t cache_mask;
};

static int
encode_word(struct encoding *c, size_t at, size_t len, struct err *e)
{
    const char *word = c->text + at;
    struct buf *ids = c->ids;
    struct cached *slot;
    size_t ids_at;

    if (len > CACHE_WORD_MAX)
        return bpe_word(&c->t->bpe, &c->work, word, len, ids, e);
    slot = &c->cache[XXH3_64bits(word, len) & c->cache_mask];
    if (slot->len == len && memcmp(c->text + slot->at, word, len) == 0) {
        if (buf_reserve(ids, slot->ids_len, e) == -1)
            return -1;
        return buf_add(ids, ids->p + slot->ids_at, slot->ids_len, e);
    }
    ids_at = ids->len;
    if (bpe_word(&c->t->bpe, &c->work, word, len, ids, e) == -1)
        return -1;
    *slot = (struct cached){at, ids_at, (uint32_t)len, (uint32_t)(ids->len - ids_at)};
    return 0;
}

static int
word_of_run(void *arg, size_t at, size_t len, struct err *e)
{
    struct encoding *c = arg;

    return encode_word(c, c->run_at + at, len, e);
}

/* Text without control tokens in it. */
static int
encode_plain(struct encoding *c, size_t at, size_t len, struct err *e)
{
    const size_t end = at + len;

    while (at < end) {
        const size_t good = utf8_valid(c->text + at, end - at);
        size_t bad = 0;

        c->run_at = at;
        if (split_text(&c->t->split, c->text + at, good, word_of_run, c, e) == -1)
            return -1;
        at += good;
        while (at + bad < end && bad < BAD_RUN_MAX) {
            const int n = utf8_char(c->text + at + bad, end - at - bad);

            if (n > 0)
                break;
            bad = n == 0 ? end - at : bad + (size_t)-n;
        }
        if (bad > 0 && encode_word(c, at, bad, e) == -1)
            return -1;
        at += bad;
    }
    return 0;
}

static const char *
token(const struct tokenizer *t, uint32_t id, size_t *len)
{
    *len = t->at[id + 1] - t->at[id];
    return t->bytes + t->at[id];
}

/* The longest token of the set that the text begins with: its length, or 0 for none. */
static size_t
longest_added(const struct tokenizer *t, const struct added_set *set, const char *text,
              size_t len, uint32_t *id)
{
    uint32_t first = 0, last = set->n; /* those that agree with the text so far */
    size_t found = 0;

    for (size_t depth = 0; first < last; depth++) {
        size_t n;

        /* A token that ends here sorts in front of those that go on. */
        (void)token(t, set->id[first], &n);
        if (n == depth) {
            found = depth;
            *id = set->id[first++];
        }
        if (depth == len)
            break;
        for (uint32_t high = last; first < high;) {
            const uint32_t mid = first + (high - first) / 2;

            if ((uint8_t)token(t, set->id[mid], &n)[depth] < (uint8_t)text[depth])
                first = mid + 1;
            else
                high = mid;
        }
        for (uint32_t low = first; low < last;) {
            const uint32_t mid = low + (last - low) / 2;

            if ((uint8_t)token(t, set->id[mid], &n)[depth] > (uint8_t)text[depth])
                last = mid;
            else
                low = mid + 1;
        }
    }
    return found;
}

/* Cuts at the tokens of one set after the other; what lies between is plain text. */
static int
encode_added(struct encoding *c, unsigned which, size_t at, size_t len, struct err *e)
{
    const struct added_set *set = &c->t->added[which];
    const size_t end = at + len;
    size_t i = at;

    if (which == ADDED_SETS)
        return encode_plain(c, at, len, e);
    while (i < end) {
        uint32_t id = 0;
        size_t n = 0;

        if (set->begins[(uint8_t)c->text[i]])
            n = longest_added(c->t, set, c->text + i, end - i, &id);
        if (n == 0) {
            i++;
            continue;
        }
        if (encode_added(c, which + 1, at, i - at, e) == -1 ||
            buf_add(c->ids, &id, sizeof id, e) == -1)
            return -1;
        i += n;
        at = i;
    }
    return encode_added(c, which + 1, at, end - at, e);
}

int
tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, int flags,
                 struct buf *ids, struct err *e)
{
    const size_t was = ids->len;
    const unsigned from = flags & TOKENIZE_CONTROL ? 0 : ADDED_SETS;
    struct encoding c = {.t = t, .text = text, .ids = ids};
    size_t slots = CACHE_MIN;
    int rc;

    if (len == 0)
        return 0;
    while (slots < CACHE_MAX && slots < len / 8)
        slots *= 2;
    c.cache = calloc(slots, sizeof c.cache[0]);
    if (c.cache == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory to tokenise with");
    c.cache_mask = slots - 1;
    rc = encode_added(&c, from, 0, len, e);
    if (rc == -1)
        ids->len = was;
    bpe_work_done(&c.work);
    free(c.cache);
    return rc;
}

uint32_t
tokenizer_n_ids(const struct tokenizer *t)
{
    return t->n_ids;
}

const char *
tokenizer_bytes(const struct tokenizer *t, uint32_t id, size_t *len)
{
    if (id >= t->n_ids) {
        *len = 0;
        return "";
    }
    return token(t, id, len);
}

bool
tokenizer_is_control(const struct tokenizer *t, uint32_t id)
{
    return id < t->n_ids && t->added_kind[id] != 0;
}

int64_t
tokenizer_control_id(const struct tokenizer *t, const char *literal)
{
    const size_t len = strlen(literal);
    uint32_t id;

    for (unsigned i = 0; i < ADDED_SETS; i++) {
        if (longest_added(t, &t->added[i], literal, len, &id) == len && len > 0)
            return id;
    }
    return -1;
}

void
tokenizer_free(struct tokenizer *t)
{
    if (t == NULL)
        return;
    for (unsigned i = 0; i < ADDED_SETS; i++)
        free(t->added[i].id);
    split_done(&t->split);
    bpe_done(&t->bpe);
    free(t->at);
    free(t->bytes);
    free(t->added_kind);
    free(t);
}
