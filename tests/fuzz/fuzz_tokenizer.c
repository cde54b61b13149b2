/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes encode, in both modes, and decode to what they were; a stream of decoded text is
 * never cut within a character; without TOKENIZE_CONTROL no control token comes out.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/utf8.h"
#include "model/tokenizer.h"
#include "tests/small_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void
must(int true_thing)
{
    if (!true_thing)
        abort();
}

static struct tokenizer *
small_tokenizer(void)
{
    struct err e;
    char *json = small_tokenizer_json();
    struct tokenizer *t = tokenizer_parse(json, strlen(json), &e);

    must(t != NULL);
    free(json);
    return t;
}

static void
decode(const struct tokenizer *t, const struct buf *ids, int raw, struct buf *out)
{
    struct detokenizer d = {.t = t, .raw = raw, .control = true};
    struct err e;
    uint32_t id;

    out->len = 0;
    for (size_t i = 0; i < ids->len; i += sizeof id) {
        const size_t was = out->len;

        memcpy(&id, ids->p + i, sizeof id);
        must(detokenize(&d, id, out, &e) == 0);
        must(raw || utf8_valid(out->p + was, out->len - was) == out->len - was);
    }
    must(detokenize_flush(&d, out, &e) == 0);
    must(raw || utf8_valid(out->p, out->len) == out->len);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct tokenizer *t; /* reachable for ever: no leak */
    struct buf ids, out;
    struct err e;
    uint32_t id;

    if (t == NULL)
        t = small_tokenizer();
    buf_init(&ids, SIZE_MAX / 2);
    buf_init(&out, SIZE_MAX / 2);
    for (int flags = 0; flags <= TOKENIZE_CONTROL; flags += TOKENIZE_CONTROL) {
        ids.len = 0;
        must(tokenizer_encode(t, (const char *)data, len, flags, &ids, &e) == 0);
        for (size_t i = 0; flags == 0 && i < ids.len; i += sizeof id) {
            memcpy(&id, ids.p + i, sizeof id);
            must(!tokenizer_is_control(t, id));
        }
        decode(t, &ids, 1, &out);
        must(out.len == len && (len == 0 || memcmp(out.p, data, len) == 0));
        decode(t, &ids, 0, &out);
        must(utf8_valid(data, len) != len ||
             (out.len == len && (len == 0 || memcmp(out.p, data, len) == 0)));
    }
    buf_done(&ids);
    buf_done(&out);
    return 0;
}
