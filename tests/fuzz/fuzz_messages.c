/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The codec on one message's bytes: decoded as what it says it is, encoded again and decoded
 * again. The second encoding must equal the first, byte for byte: nothing is lost or invented.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "proto/frame.h"
#include "proto/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void
must(int truth)
{
    if (!truth)
        abort();
}

/* Decodes the frame and encodes what it got. False if it is none of ours. */
static bool
around(const uint8_t *p, size_t len, uint32_t as, struct frame_out *out)
{
    static uint64_t body[512];
    const struct wire_message *m;
    char key[WIRE_METHOD_BYTES];
    struct wire_in in;
    struct err e;
    bool ok = false;

    if (wire_open(&in, NULL, p, len, &e) == -1)
        return false;
    if (in.shape == WIRE_REQUEST || in.shape == WIRE_NOTIFY) {
        if (in.method != NULL) {
            const enum wire_method_id id = (enum wire_method_id)(in.method - wire_methods);

            m = in.method->request;
            must(m->size <= sizeof body);
            if (wire_decode(&in, m, body, key, &e) == 0)
                ok = (in.shape == WIRE_REQUEST ? wire_request(out, in.id, id, body, &e)
                                               : wire_notify(out, id, body, &e)) == 0;
            else
                must(e.code == (in.shape == WIRE_REQUEST ? ERR_INVALID : ERR_PROTOCOL));
        }
    } else if (in.shape == WIRE_RESPONSE) {
        m = in.failed ? WIRE_MSG(error) : wire_methods[as % WIRE_METHODS].result;
        must(m->size <= sizeof body);
        if (wire_decode(&in, m, body, NULL, &e) == 0)
            ok = (in.failed ? wire_fail(out, in.id, (struct wire_error *)body, &e)
                            : wire_response(out, in.id, m, body, &e)) == 0;
    } else if (in.shape == WIRE_STREAM) {
        m = wire_methods[as % WIRE_METHODS].item;
        if (wire_decode_item(&in, 0, m, body, &e) == 0)
            ok = wire_stream(out, in.id, in.n, m, body, 1, &e) == 0;
    } else if (in.shape == WIRE_CREDIT) {
        ok = wire_credit(out, in.id, in.n, &e) == 0;
    } else {
        ok = wire_cancel(out, in.id, &e) == 0;
    }
    wire_close(&in);
    return ok;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    struct frame_out one, two;

    if (len < 2 || len > 65536)
        return 0;
    frame_out_init(&one, 4 << 20);
    frame_out_init(&two, 4 << 20);
    if (around(p + 1, len - 1, p[0], &one)) {
        must(around(one.b.p + FRAME_HEAD, one.b.len - FRAME_HEAD, p[0], &two));
        must(one.b.len == two.b.len && memcmp(one.b.p, two.b.p, one.b.len) == 0);
    }
    frame_out_done(&one);
    frame_out_done(&two);
    return 0;
}
