/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pieces of rendered text to token ids. Control tokens are looked up by their text, because
 * their ids are the tokenizer's business; plain pieces are encoded without parsing control
 * tokens, so nothing that a user typed can become one. Any thread.
 */
#include <config.h>

#include <string.h>

#include "base/err.h"
#include "model/chat.h"
#include "model/tokenizer.h"

static int
add_control(const struct tokenizer *t, const char *s, size_t len, struct buf *ids,
            struct err *e)
{
    char literal[64];
    int64_t found;
    uint32_t id;

    if (len >= sizeof literal)
        return err_set(e, ERR_INTERNAL, 0, "a control piece of %zu bytes", len);
    memcpy(literal, s, len);
    literal[len] = '\0';
    found = tokenizer_control_id(t, literal);
    if (found < 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "the tokenizer has no token %s, which the chat format needs",
                       literal);
    id = (uint32_t)found;
    return buf_add(ids, &id, sizeof id, e);
}

int
chat_tokenize(const struct tokenizer *t, const struct chat_text *text, struct buf *ids,
              struct err *e)
{
    const char *s = (const char *)text->text.p;
    const size_t before = ids->len, n = text->pieces.len / sizeof(struct chat_piece);

    for (size_t i = 0; i < n; i++) {
        struct chat_piece piece;
        int r;

        memcpy(&piece, text->pieces.p + i * sizeof piece, sizeof piece);
        r = piece.control ? add_control(t, s, piece.len, ids, e)
                          : tokenizer_encode(t, s, piece.len, 0, ids, e);
        if (r == -1) {
            ids->len = before;
            return -1;
        }
        s += piece.len;
    }
    return 0;
}
