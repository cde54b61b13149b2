/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file of class B. With a first byte of 0 the rest is the file as it is. Else the head gets its
 * checksum and, with an odd one, each section its hash where the table says that it lies, so that
 * mutations reach what lies behind the sums. What is accepted must be
 * as long as its head says, its tokens readable, of the samples' model or said to be of another,
 * and refused where another file is wanted.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/err.h"
#include "kvstore/kvfile.h"
#include "tests/kvfile_sample.h"

enum { HEAD = 4096, N_SECTIONS_AT = 44, TABLE_AT = 152, ENTRY = 56, MAX_SECTIONS = 3 };

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void
must(int truth)
{
    if (!truth)
        abort();
}

static uint64_t
u64_at(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof v);
    return v;
}

static void
make_sums(uint8_t *file, size_t n, int sections)
{
    uint64_t sum;

    if (n < HEAD)
        return;
    for (uint32_t i = 0; i < MAX_SECTIONS && sections; i++) {
        uint8_t *entry = file + TABLE_AT + i * ENTRY;
        const uint64_t at = u64_at(entry + 24), bytes = u64_at(entry + 32);
        XXH128_canonical_t hash;

        if (i >= u64_at(file + N_SECTIONS_AT) % 4 || at > n || bytes > n - at)
            continue;
        XXH128_canonicalFromHash(&hash, XXH3_128bits(file + at, bytes));
        memcpy(entry + 40, hash.digest, sizeof hash.digest);
    }
    sum = XXH3_64bits(file, HEAD - sizeof sum);
    memcpy(file + HEAD - sizeof sum, &sum, sizeof sum);
}

static void
check(const uint8_t *file, size_t n)
{
    struct kvfile_about about;
    struct kvfile_plan plan;
    const uint32_t *tokens;
    struct err e = {0};
    uint64_t sum = 0;

    if (kvfile_check(file, n, NULL, NULL, &about, &plan, &tokens, &e) == -1) {
        must(e.code != ERR_NONE && e.text[0] != '\0');
        return;
    }
    must(plan.bytes == n);
    if (kvfile_check(file, n, &kvfile_sample_model, NULL, NULL, NULL, NULL, &e) == -1)
        must(e.code == ERR_MODEL_MISMATCH);
    must((about.type == KVFILE_CHUNK) == (tokens != NULL));
    for (uint32_t i = 0; i < about.n_tokens; i++)
        sum += tokens[i]; /* all of them can be read */
    must(sum <= (uint64_t)about.n_tokens << 24);
    must(plan.pages_at < n && plan.state_at <= n && plan.logits_at < n);
    must(kvfile_check(file, n, NULL, &about, NULL, NULL, NULL, &e) == 0);
    about.pos ^= 4096;
    must(kvfile_check(file, n, NULL, &about, NULL, NULL, NULL, &e) == -1);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    /* Of exactly that size behind an aligned start, so that a sanitizer sees a read past it. */
    uint8_t *file;
    size_t n;

    if (len < 1 || len > 1 << 20)
        return 0;
    n = len - 1;
    file = malloc(n > 0 ? n : 1);
    must(file != NULL);
    memcpy(file, p + 1, n);
    if (p[0] != 0)
        make_sums(file, n, p[0] & 1);
    check(file, n);
    free(file);
    return 0;
}
