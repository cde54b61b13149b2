/* SPDX-License-Identifier: Apache-2.0 */
/*
 * append: text, tokens, chat messages or a document in a memfd. What it brings is counted
 * before anything is done with it; a client that leaves does not stop it.
 */
#include "config.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/input.h"
#include "daemon/options.h"
#include "daemon/request.h"
#include "model/tokenizer.h"

static void
on_progress(struct op *op)
{
    struct request *r = op->owner;
    struct wire_progress item = {.pos = op->session->log.len,
                                 .total = op->begin + op->n_ids};
    struct err e;

    /* How far it is now: a reader that is behind wants the next one, not this. */
    if (r == NULL || r->data == NULL || conn_waiting(r->conn) >= CONN_STREAM_BYTES)
        return;
    if (wire_stream(&r->conn->out, r->id, (*(uint32_t *)r->data)++, WIRE_MSG(progress),
                    &item, 1, &e) == -1)
        conn_drop(r->conn);
    else
        conn_kick(r->conn);
}

static void
on_done(struct op *op)
{
    struct request *r = request_of(op);
    struct wire_append_result res = {.pos = op->end, .appended = op->end - op->begin};

    if (r == NULL)
        return;
    if (op->err.code != ERR_NONE) {
        request_fail_at(r, &op->err, op->end);
        return;
    }
    if (op->repeated)
        wire_put(&res, append_result, repeated, true);
    if (op->dropped > 0) {
        wire_put(&res, append_result, dropped, op->dropped);
        wire_put(&res, append_result, replay, op->replay);
    }
    request_reply(r, WIRE_MSG(append_result), &res);
}

/* The client has left: the append goes on without it. */
static void
on_leave(struct request *r)
{
    if (r->op != NULL)
        request_of(r->op);
}

static void
drop_data(struct request *r)
{
    free(r->data);
}

static int
read_effort(struct wire_str s, enum chat_effort *out, struct err *e)
{
    static const char *const names[] = {
        [CHAT_EFFORT_LOW] = "low", [CHAT_EFFORT_HIGH] = "high", [CHAT_EFFORT_MAX] = "max"};

    for (int i = CHAT_EFFORT_LOW; i <= CHAT_EFFORT_MAX; i++) {
        if (wire_is(s, names[i])) {
            *out = (enum chat_effort)i;
            return 0;
        }
    }
    return err_set(e, ERR_INVALID, 0, "key 'effort': none of low, high and max");
}

static int
read_body(struct op *op, const struct wire_append *q, const struct options *o,
          struct err *e)
{
    const int given = wire_has(q, append, text) + wire_has(q, append, tokens) +
                      wire_has(q, append, messages) + wire_has(q, append, document);

    if (given != 1)
        return err_set(e, ERR_INVALID, 0,
                       "one of 'text', 'tokens', 'messages' and 'document' is needed");
    if (wire_has(q, append, bytes) && !wire_has(q, append, document))
        return err_set(e, ERR_INVALID, 0, "key 'bytes': only with 'document'");
    op->control = q->control ? TOKENIZE_CONTROL : 0;
    op->bos = wire_has(q, append, bos) ? q->bos : -1;
    op->has_if_pos = wire_has(q, append, if_pos);
    op->if_pos = q->if_pos;
    op->chat = (struct chat_opts){
        .thinking = q->thinking, .keep_reasoning = q->keep_reasoning, .release = CHAT_0731};
    if (wire_has(q, append, effort) && read_effort(q->effort, &op->chat.effort, e) == -1)
        return -1;
    if (input_op_id(op, wire_has(q, append, op_id), q->op_id, e) == -1)
        return -1;
    if (wire_has(q, append, tokens))
        return input_tokens(op, q->tokens, e);
    if (wire_has(q, append, document))
        return input_document(op, q->document,
                              wire_has(q, append, bytes) ? q->bytes : UINT64_MAX,
                              o->max_document, e);
    op->input = wire_has(q, append, messages) ? OP_MESSAGES : OP_TEXT;
    return input_text(op, op->input == OP_MESSAGES ? q->messages : q->text, e);
}

void
req_append(struct request *r, const void *body)
{
    static const struct op_calls calls = {.progress = on_progress, .done = on_done};
    const struct wire_append *q = body;
    struct err e;
    struct op *op = op_new(OP_APPEND, r->session, r->conn->user, &calls, r, &e);
    int rc = op == NULL ? -1 : read_body(op, q, r->conn->server->o, &e);

    if (wire_has(q, append, document))
        close(q->document);
    if (rc == 0 && q->progress) {
        r->data = calloc(1, sizeof(uint32_t));
        r->drop = drop_data;
        if (r->data == NULL)
            rc = err_set(&e, ERR_QUOTA, errno, "no memory for a request");
    }
    if (rc == -1) {
        op_free(op);
        request_fail_at(r, &e, r->session->log.len);
        return;
    }
    r->leave = on_leave;
    request_submit(r, op);
}
