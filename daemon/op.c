/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/op.h"
#include "daemon/quota.h"

struct op *
op_new(enum op_kind kind, struct session *s, struct user *payer,
       const struct op_calls *calls, void *owner, struct err *e)
{
    struct op *op = calloc(1, sizeof *op);

    if (op == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for an operation");
        return NULL;
    }
    op->kind = kind;
    op->session = s;
    op->payer = quota_hold(payer);
    op->calls = calls;
    op->owner = owner;
    op->fd = -1;
    op->bos = -1;
    op->queued_ns = clock_ns();
    return op;
}

int
op_pay(struct op *op, uint64_t n, struct err *e)
{
    if (quota_take(op->payer, QUOTA_BYTES, n, e) == -1)
        return -1;
    op->paid += n;
    return 0;
}

void
op_free(struct op *op)
{
    if (op == NULL)
        return;
    store_unwait(&op->wait);
    store_unwait(&op->wait_made);
    if (op->mapped != NULL)
        munmap(op->mapped, op->n_text);
    else
        free(op->text);
    free(op->ids);
    free(op->scores);
    if (op->fd != -1)
        close(op->fd);
    quota_give(op->payer, QUOTA_BYTES, op->paid);
    quota_drop(op->payer);
    free(op);
}

void
op_fail(struct op *op, const struct err *e)
{
    if (op->err.code == ERR_NONE)
        op->err = *e;
}
