/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench-tokenizer DIR FILE: encodes FILE, as often as fits into about two seconds, with the
 * tokenizer of model folder DIR, then decodes it. One thread. Prints the best rate of all
 * rounds, since what another process takes is no property of the tokenizer.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/file.h"
#include "model/tokenizer.h"

enum { FILE_MAX = 1 << 30 };

static int
encode(const struct tokenizer *t, const char *text, size_t len, struct buf *ids,
       struct err *e)
{
    const uint64_t start = clock_ns();
    uint64_t best = UINT64_MAX, now;
    unsigned rounds = 0;

    do {
        const uint64_t from = clock_ns();

        ids->len = 0;
        if (tokenizer_encode(t, text, len, TOKENIZE_CONTROL, ids, e) == -1)
            return -1;
        now = clock_ns();
        if (now - from < best)
            best = now - from;
        rounds++;
    } while (now - start < 2000000000);
    printf("encode: %.1f MB/s; %zu bytes, %zu tokens, best of %u\n",
           (double)len * 1e3 / (double)best, len, ids->len / sizeof(uint32_t), rounds);
    return 0;
}

static int
decode(const struct tokenizer *t, const char *text, size_t len, const struct buf *ids,
       struct err *e)
{
    struct detokenizer d = {.t = t, .raw = true, .control = true};
    const uint64_t from = clock_ns();
    struct buf out;
    uint32_t id;
    int rc = 0;

    buf_init(&out, (size_t)FILE_MAX + 1);
    for (size_t i = 0; i < ids->len && rc == 0; i += sizeof id) {
        memcpy(&id, ids->p + i, sizeof id);
        rc = detokenize(&d, id, &out, e);
    }
    if (rc == 0)
        rc = detokenize_flush(&d, &out, e);
    if (rc == 0)
        printf("decode: %.1f MB/s\n", (double)len * 1e3 / (double)(clock_ns() - from));
    if (rc == 0 && (out.len != len || memcmp(out.p, text, len) != 0))
        rc = err_set(e, ERR_INTERNAL, 0, "decoding does not give the text back");
    buf_done(&out);
    return rc;
}

int
main(int argc, char **argv)
{
    struct err e = {0};
    struct tokenizer *t = NULL;
    struct buf ids;
    char *text = NULL;
    size_t len = 0;
    uint64_t from;
    int rc = 1;

    buf_init(&ids, SIZE_MAX / 2);
    if (argc != 3) {
        fprintf(stderr, "usage: bench-tokenizer DIR FILE\n");
        return 64;
    }
    from = clock_ns();
    t = tokenizer_load(argv[1], &e);
    if (t != NULL) {
        printf("load:   %.0f ms, %u ids\n", (double)(clock_ns() - from) / 1e6,
               (unsigned)tokenizer_n_ids(t));
        text = file_read(argv[2], FILE_MAX, &len, &e);
    }
    if (text != NULL && encode(t, text, len, &ids, &e) == 0 &&
        decode(t, text, len, &ids, &e) == 0)
        rc = 0;
    if (rc != 0) {
        fprintf(stderr, "bench-tokenizer: %s\n", e.text);
        rc = err_exit_status(e.code);
    }
    tokenizer_free(t);
    buf_done(&ids);
    free(text);
    return rc;
}
