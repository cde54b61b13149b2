/* SPDX-License-Identifier: Apache-2.0 */
/* Which compressed rows a query of a ratio-4 layer looks at (spec 7). */
#include "config.h"

#include "gpu/cpu/cpu.h"
#include "gpu/cpu/pool.h"

struct picking {
    const struct index_score_args *job;
    int *const *to;
    int k;
};

static void
pick(const void *arg, int i, int end)
{
    const struct picking *p = arg;

    for (; i < end; i++)
        topk_rows(p->job[i].score, p->job[i].n_rows, p->k, p->to[i]);
}

/*
 * Rows row0 .. row0 + n - 1 of the step, all of span s: picked [n][index_topk], ascending. Rows
 * that see no more entries than may be picked are left out: they look at all of them.
 */
void
index_pick(struct backend *b, const struct layer *l, const struct span *s, int row0, int n,
           int *picked)
{
    const struct model_config *c = &b->c;
    const struct compressor *k = &l->index_comp;
    const int block_rows = KV_PAGE_TOKENS / k->ratio;
    struct scratch *sc = &b->s;
    struct index_score_args job[INDEX_ROWS];
    int *to[INDEX_ROWS], jobs = 0;

    for (size_t i = 0; i < s->seq->n_pages; i++)
        sc->blocks[i] = s->seq->pages[i]->rows + k->page_at;
    for (int i = 0; i < n; i++) {
        const int row = row0 + i;
        const uint64_t pos = s->start + (uint64_t)(row - s->row0);
        const int visible = (int)((pos + 1) / (uint64_t)k->ratio);

        if (visible > c->index_topk) {
            to[jobs] = picked + (size_t)i * c->index_topk;
            job[jobs] = (struct index_score_args){
                .q = sc->iqp + (size_t)row * c->index_n_heads * b->at.index_row,
                .w = sc->iw + (size_t)row * c->index_n_heads,
                .blocks = sc->blocks,
                .score = sc->scores + (size_t)jobs * sc->cap_scores,
                .n_rows = visible,
                .block_rows = block_rows,
                .n_heads = c->index_n_heads,
                .dim = c->index_head_dim,
            };
            jobs++;
        }
        if (jobs == INDEX_ROWS || (i == n - 1 && jobs > 0)) {
            b->ops->index_scores(job, jobs);
            pool_run(jobs, 1, pick,
                     &(struct picking){.job = job, .to = to, .k = c->index_topk});
            jobs = 0;
        }
    }
    if (MUTANT(MUTANT_TOPK_RECENT)) {
        for (int i = 0; i < n; i++) {
            const uint64_t pos = s->start + (uint64_t)(row0 + i - s->row0);
            const int visible = (int)((pos + 1) / (uint64_t)k->ratio);

            for (int t = 0; visible > c->index_topk && t < c->index_topk; t++)
                picked[(size_t)i * c->index_topk + t] = visible - c->index_topk + t;
        }
    }
}
