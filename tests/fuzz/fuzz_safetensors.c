/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A safetensors file. With a first byte of 0 the rest is the file as it is; else it is a
 * header, which gets its length in front and that many bytes of payload behind, so that mutations
 * reach what lies behind the length check. Whatever is accepted must tile its payload.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void
must(int truth)
{
    if (!truth)
        abort();
}

static void
check(const uint8_t *p, size_t len)
{
    struct err e = {0};
    struct safetensors *st = safetensors_parse(p, len, &e);
    uint64_t n_header = 0, sum = 0;

    if (st == NULL) {
        must(e.code != ERR_NONE && e.text[0] != '\0');
        return;
    }
    for (int i = 7; i >= 0; i--)
        n_header = n_header << 8 | p[i];
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const struct tensor *t = safetensors_at(st, i);
        const uint8_t *from = t->data;
        uint64_t n = (uint64_t)dtype_bytes(t->dtype);

        for (int d = 0; d < t->n_dims; d++)
            n *= (uint64_t)t->dims[d];
        must(n == t->n_bytes);
        must(from >= p + 8 + n_header && from <= p + len);
        must(t->n_bytes <= (uint64_t)(p + len - from));
        must(safetensors_find(st, t->name) == t);
        sum += t->n_bytes;
    }
    must(8 + n_header + sum == len);
    safetensors_meta(st, "format");
    safetensors_close(st);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    uint8_t *file;
    size_t n;

    if (len < 1 || len > 1 << 16)
        return 0;
    n = len - 1;
    file = malloc(8 + n + p[0]);
    must(file != NULL);
    if (p[0] == 0) {
        memcpy(file, p + 1, n);
        check(file, n);
    } else {
        for (int i = 0; i < 8; i++)
            file[i] = (uint8_t)((uint64_t)n >> 8 * i);
        memcpy(file + 8, p + 1, n);
        memset(file + 8 + n, 0x55, p[0]);
        check(file, 8 + n + p[0]);
    }
    free(file);
    return 0;
}
