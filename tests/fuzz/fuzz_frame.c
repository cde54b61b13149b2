/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames and skim, against msgpack-c. The input is a stream: its first byte says in what steps
 * it arrives. Whatever the steps, the same frames must come out; and what the skim passes
 * msgpack-c must unpack to the same length, and what it calls cut short msgpack-c must not.
 */
#include "config.h"

#include <msgpack.h>
#include <stdlib.h>

#include "base/err.h"
#include "proto/frame.h"
#include "proto/skim.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void
must(int truth)
{
    if (!truth)
        abort();
}

static void
compare_with_msgpack(const uint8_t *p, size_t len)
{
    msgpack_unpacked u;
    size_t used = 0, off = 0;
    struct err e;
    const int r = skim(p, len, &used, &e);

    if (r == -1)
        return; /* msgpack-c might reserve gigabytes for these: that is why there is a skim */
    msgpack_unpacked_init(&u);
    must(msgpack_unpack_next(&u, (const char *)p, len, &off) == MSGPACK_UNPACK_SUCCESS);
    must(off == used);
    msgpack_unpacked_destroy(&u);

    /* One byte less and it is cut short: the skim must see that. */
    must(skim(p, used - 1, &off, &e) == -1);
}

static uint64_t
run(const uint8_t *p, size_t len, size_t step, int compare)
{
    uint64_t sum = 1469598103934665603u;
    struct frame_in in;
    struct err e;
    int r = 0;

    frame_in_init(&in);
    for (size_t at = 0; at < len && r != -1; at += step) {
        const uint8_t *frame;
        size_t n;

        must(frame_in_feed(&in, p + at, len - at < step ? len - at : step, -1, &e) == 0);
        while ((r = frame_in_next(&in, &frame, &n, &e)) == 1) {
            must(n >= 1 && n <= FRAME_MAX);
            sum = (sum ^ n) * 1099511628211u;
            for (size_t i = 0; i < n; i++)
                sum = (sum ^ frame[i]) * 1099511628211u;
            if (compare)
                compare_with_msgpack(frame, n);
        }
    }
    sum = (sum ^ (uint64_t)(r == -1)) * 1099511628211u;
    frame_in_done(&in);
    return sum;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    if (len < 2 || len > 65536)
        return 0;
    compare_with_msgpack(p + 1, len - 1);
    must(run(p + 1, len - 1, 65536, 1) == run(p + 1, len - 1, 1u + p[0], 0));
    return 0;
}
