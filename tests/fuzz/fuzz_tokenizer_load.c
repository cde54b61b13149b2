/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a tokenizer.json: refused with a text, or a tokenizer that round-trips. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void
must(int true_thing)
{
    if (!true_thing)
        abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const char text[] =
        "hello  world 1234,\r\n <bos>\xe4\xb8\xad\xff aaaaaaaaaaaaaaaa";
    struct err e = {0};
    struct detokenizer d = {.raw = true, .control = true};
    struct tokenizer *t = tokenizer_parse((const char *)data, len, &e);
    struct buf ids, out;
    uint32_t id;

    if (t == NULL) {
        must(e.code != ERR_NONE && e.text[0] != '\0');
        return 0;
    }
    d.t = t;
    buf_init(&ids, SIZE_MAX / 2);
    buf_init(&out, SIZE_MAX / 2);
    /* An expression of the file's own may give up on a text, with an error. */
    if (tokenizer_encode(t, text, sizeof text, TOKENIZE_CONTROL, &ids, &e) == 0) {
        for (size_t i = 0; i < ids.len; i += sizeof id) {
            memcpy(&id, ids.p + i, sizeof id);
            must(detokenize(&d, id, &out, &e) == 0);
        }
        must(detokenize_flush(&d, &out, &e) == 0);
        must(out.len == sizeof text && memcmp(out.p, text, sizeof text) == 0);
    }
    buf_done(&ids);
    buf_done(&out);
    tokenizer_free(t);
    return 0;
}
