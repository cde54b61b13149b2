/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The k largest of many bf16 scores, in linear time: scores have only 16 bits, so two counts
 * of 256 classes find the k-th value; rows above it are taken, and of those equal to it the
 * first ones (spec 7.5 leaves ties open; the lower index wins here).
 */
#include "config.h"

#include "base/fp.h"
#include "gpu/cpu/cpu.h"

/* Orders like the number: negative ones turn around. */
static unsigned
sort_key(float score)
{
    const unsigned u = f32_bits(score) >> 16;

    return u & 0x8000 ? ~u & 0xffff : u | 0x8000;
}

/* The class in which the k-th largest lies; *k becomes its rank inside the class. */
static int
find_class(const int count[256], int *k)
{
    int i = 255;

    while (i > 0 && *k > count[i])
        *k -= count[i--];
    return i;
}

void
topk_rows(const float *score, int n, int k, int *picked)
{
    int high[256] = {0}, low[256] = {0}, rank = k, out = 0;
    unsigned limit;

    for (int i = 0; i < n; i++)
        high[sort_key(score[i]) >> 8]++;
    limit = (unsigned)find_class(high, &rank) << 8;
    for (int i = 0; i < n; i++)
        if ((sort_key(score[i]) & 0xff00) == limit)
            low[sort_key(score[i]) & 0xff]++;
    limit |= (unsigned)find_class(low, &rank);
    for (int i = 0; i < n && out < k; i++) {
        const unsigned s = sort_key(score[i]);

        if (s > limit || (s == limit && rank-- > 0))
            picked[out++] = i;
    }
}
