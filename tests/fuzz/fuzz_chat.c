/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chat encoding, both ways. First byte: options. The rest is JSON to encode if it begins
 * with a bracket, and always a completion to parse, of which nothing may be lost and whose
 * message must be JSON again.
 */
#include "config.h"

#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/chat.h"
#include "tests/chat_loss.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void
encode(const char *json, size_t len, uint8_t bits)
{
    const struct chat_opts o = {
        .thinking = bits & 1,
        .keep_reasoning = (bits & 2) != 0,
        .in_context = (bits & 4) != 0,
        .effort = bits >> 3 & 3,
        .release = bits >> 5 & 1,
    };
    const struct chat_piece *piece;
    struct chat_text t;
    struct err e = {0};
    size_t sum = 0;

    chat_text_init(&t, 1 << 20);
    if (chat_encode(json, len, &o, &t, &e) == -1 && (e.code == ERR_NONE || t.text.len > 0))
        abort();
    piece = (const void *)t.pieces.p;
    for (size_t i = 0; i < t.pieces.len / sizeof *piece; i++)
        sum += piece[i].len;
    if (sum != t.text.len)
        abort();
    chat_text_done(&t);
}

static void
parse(const char *text, size_t len, bool thinking)
{
    struct chat_message m;
    struct err e = {0};
    struct buf b;
    json_t *v;

    if (chat_parse(text, len, thinking, &m, &e) == -1 || !chat_nothing_lost(text, len, &m))
        abort();
    buf_init(&b, SIZE_MAX / 2);
    if (chat_message_json(&m, &b, &e) == -1)
        abort();
    v = json_loadb((const char *)b.p, b.len, JSON_ALLOW_NUL, NULL);
    if (v == NULL)
        abort();
    json_decref(v);
    buf_done(&b);
    chat_message_done(&m);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    const char *text = (const char *)p + 1;

    if (len == 0)
        return 0;
    if (len > 1 && (text[0] == '[' || text[0] == '{'))
        encode(text, len - 1, p[0]);
    parse(text, len - 1, p[0] & 1);
    return 0;
}
