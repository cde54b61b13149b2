/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "base/err.h"
#include "gpu/check.h"
#include "gpu/network.h"
#include "model/kvlayout.h"

static int
check_share(const struct step_seq *q, const struct step_bounds *k, struct err *e)
{
    uint64_t len;

    if (k->find(k->b, q->seq, e) == -1)
        return -1;
    if (q->n_tokens < 1 || q->n_tokens > k->max_tokens || q->n_logits > q->n_tokens ||
        (q->n_logits > 0 && q->logits == NULL))
        return err_set(e, ERR_INVALID, 0, "sequence %u: %u tokens, %u rows of logits",
                       q->seq, q->n_tokens, q->n_logits);
    if (q->draw != NULL && (!k->draws || q->n_logits > 0 || q->drawn == NULL))
        return err_set(e, ERR_INVALID, 0, "sequence %u: no token can be drawn", q->seq);
    if (q->mtp_logits != NULL && !k->draft)
        return err_set(e, ERR_INVALID, 0, "sequence %u: opened without the draft block",
                       q->seq);
    for (uint32_t t = 0; t < q->n_tokens; t++)
        if (q->tokens[t] >= (uint32_t)k->c->vocab_size)
            return err_set(e, ERR_INVALID, 0, "sequence %u: token %u of a vocabulary of %d",
                           q->seq, q->tokens[t], k->c->vocab_size);
    len = k->len(k->b, q->seq);
    if (len + q->n_tokens > (uint64_t)k->c->max_positions)
        return err_set(
            e, ERR_CONTEXT_FULL, 0, "sequence %u: %llu tokens and %u more of %lld", q->seq,
            (unsigned long long)len, q->n_tokens, (long long)k->c->max_positions);
    return 0;
}

int
check_step(const struct step *s, const struct step_bounds *k, struct err *e)
{
    uint64_t n = 0;

    if (s->n_seqs > k->max_seqs)
        return err_set(e, ERR_INVALID, 0, "a step of %u sequences", s->n_seqs);
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        if (check_share(&s->seqs[i], k, e) == -1)
            return -1;
        for (uint32_t t = 0; t < i; t++)
            if (s->seqs[t].seq == s->seqs[i].seq)
                return err_set(e, ERR_INVALID, 0, "sequence %u is in the step twice",
                               s->seqs[i].seq);
        n += s->seqs[i].n_tokens;
    }
    if (n < 1 || n > k->max_tokens)
        return err_set(e, ERR_INVALID, 0, "a step of %llu tokens, 1 to %u are possible",
                       (unsigned long long)n, k->max_tokens);
    return 0;
}

int
check_rewind(uint64_t to, uint64_t len, uint64_t high, uint64_t floor, struct err *e)
{
    if (to > len)
        return err_set(e, ERR_INVALID, 0, "rewind to %llu: there are %llu tokens",
                       (unsigned long long)to, (unsigned long long)len);
    if (high - to > MAX_REWIND)
        return err_set(e, ERR_CONFLICT, 0, "rewind to %llu is more than %d tokens back",
                       (unsigned long long)to, MAX_REWIND);
    if (to < floor)
        return err_set(e, ERR_CONFLICT, 0, "rewind to %llu: the caches were set at %llu",
                       (unsigned long long)to, (unsigned long long)floor);
    return 0;
}

int
check_empty(uint32_t seq, uint64_t len, struct err *e)
{
    if (len == 0)
        return 0;
    return err_set(e, ERR_CONFLICT, 0,
                   "sequence %u has %llu tokens: caches come to an empty one", seq,
                   (unsigned long long)len);
}

int
check_come(const struct model_config *c, uint64_t had, uint64_t n, struct err *e)
{
    const uint64_t most = (uint64_t)c->max_positions / KV_PAGE_TOKENS;

    if (n <= most - had)
        return 0;
    return err_set(e, ERR_CONTEXT_FULL, 0, "%llu pages and %llu more of %llu",
                   (unsigned long long)had, (unsigned long long)n,
                   (unsigned long long)most);
}

int
check_set(const struct model_config *c, uint64_t len, uint64_t come, struct err *e)
{
    if (len > (uint64_t)c->max_positions)
        return err_set(e, ERR_CONTEXT_FULL, 0, "position %llu of %lld",
                       (unsigned long long)len, (long long)c->max_positions);
    if (len / KV_PAGE_TOKENS != come)
        return err_set(e, ERR_CONFLICT, 0, "position %llu: %llu pages have come",
                       (unsigned long long)len, (unsigned long long)come);
    return 0;
}
