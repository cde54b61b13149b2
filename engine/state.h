/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ENGINE_STATE_H
#define ENGINE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "engine/job.h"
#include "engine/out.h"
#include "engine/sched.h"
#include "engine/seq.h"
#include "gpu/backend.h"

enum { MAX_SAMPLERS = 16 }; /* 3 MB each with 129,280 logits */

/*
 * The engine's own state, for its five files: engine.c (loop, packets in), work.c (what a job
 * does when it is its turn), choose.c (the tokens that samples draw), copy.c (jobs that move
 * caches), step.c (the backend's step). Engine loop thread only, except for
 * *status, which the daemon reads.
 */
struct engine {
    struct engine_model model;
    struct backend_info info;
    struct link_status *status; /* never NULL: own_status if the daemon gave none */
    struct link_status *own_status;
    struct out out;
    struct seqs seqs;
    struct sched sched;
    struct sampler *samplers[MAX_SAMPLERS];
    int n_samplers;
    union link_packet *packet; /* for receiving */

    struct job *jobs, **jobs_end; /* all under way, in order of arrival */
    uint32_t n_jobs;
    uint64_t turn;
    uint64_t *taken;   /* [max_seqs]: the turn in which an earlier job has named it */
    uint64_t *filling; /* the same, of KV_INs under way: more of them may pass */

    uint32_t n_copying; /* jobs whose copies are under way in this turn */
    bool copies_to_ask; /* some of them have not asked for all */
    uint64_t
        copy_until; /* no more is asked for in this turn after that; 0: nothing was yet */

    /* This turn's jobs that wait for a step, and their places in it; same index. */
    struct job *waiting[LINK_MAX_JOBS];
    struct sched_item items[LINK_MAX_JOBS];
    size_t n_waiting;
    struct step_seq *shares; /* [LINK_MAX_JOBS] */
    struct job **share_jobs; /* [LINK_MAX_JOBS]: whose shares they are */
    float *score_rows;       /* f32 [max_scored][vocab]; allocated when first needed */
    float *score_out;        /* f32 [max_scored] */
    uint32_t max_scored;

    double prefill_ns; /* a token of prefill takes about that long */
    int exit;          /* ENGINE_GOES_ON or the status to exit with */
};

/* The process cannot go on: LINK_FATAL, then exit with `status`. Returns -1. */
int engine_fatal(struct engine *en, int status, const struct err *why);

int engine_tell(struct engine *en, uint16_t type, const struct job *j, const void *body,
                size_t len, const void *more, size_t more_len);

/* Lets all jobs go as far as they come without a step; fills waiting and items. */
void work(struct engine *en);
void work_refuse(struct engine *en, const struct job *j); /* LINK_END with j->err */

/* choose.c: tokens for all jobs that can draw one now, then for one of them; NULL: j->err. */
int choose_init(struct engine *en, struct err *e);
void choose_done(struct engine *en);
void choose_all(struct engine *en);
const struct sample_choice *choose_one(struct engine *en, struct job *j);

/* May the backend draw the next token of this SAMPLE? Then j->sampling->draw says how. */
bool choose_by_backend(const struct engine *en, struct job *j);

/* copy.c. After a job has done what it can: */
enum progress { OVER, NEEDS_STEP, COPIES };

enum progress copy_out(struct engine *en, struct job *j);
enum progress copy_in(struct engine *en, struct job *j);
enum progress copy_set(struct engine *en, struct job *j);
enum progress job_done(struct engine *en,
                       const struct job *j); /* LINK_END: both are OVER */
enum progress job_failed(struct engine *en, const struct job *j);

/* Runs one step for the jobs waiting, if there are any. True if it ran. */
bool step(struct engine *en);

#endif /* ENGINE_STATE_H */
