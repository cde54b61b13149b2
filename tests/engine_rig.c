/* SPDX-License-Identifier: Apache-2.0 */
/* An engine in the test's thread; engine_rig.h says why. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "tests/engine_rig.h"
#include "tests/test.h"

const char *
rig_text(const void *arg, uint32_t id, size_t *len)
{
    static char text[4];

    (void)arg;
    *len = 1 + id % 3;
    snprintf(text, sizeof text, "%c%c%c", 'a' + id % 7, 'a' + id / 7 % 5, 'a' + id % 4);
    return text;
}

int
rig_turn(void *arg)
{
    struct rig *r = arg;

    if (r->exit == ENGINE_GOES_ON)
        r->exit = engine_turn(r->en, 0);
    return r->exit;
}

static void
rig_config(struct model_config *c)
{
    toy_config(c);
    c->vocab_size = VOCAB;
    c->max_positions = CONTEXT;
}

uint64_t
rig_bytes(uint64_t seqs, uint64_t pages)
{
    struct model_config c;

    rig_config(&c);
    return toy_bytes(&c, seqs, pages);
}

static void
start(struct rig *r, uint64_t kv_bytes, bool arena)
{
    struct model_config c;
    const struct backend_opts o = {.max_seqs = SEQS, .kv_bytes = kv_bytes};
    struct engine_model m = {.ops = &backend_toy, .token_bytes = rig_text};
    struct err e;
    int sock[2];

    rig_config(&c);
    memset(r, 0, sizeof *r);
    r->exit = ENGINE_GOES_ON;
    assert_int_equal(kv_layout_init(&r->layout, &c, false, &e), 0);
    m.layout = &r->layout;
    if (arena) {
        r->arena = aligned_alloc(64, ARENA);
        assert_non_null(r->arena);
        memset(r->arena, 0xee, ARENA);
        m.arena = r->arena;
        m.arena_bytes = ARENA;
    }
    assert_int_equal(link_pair(sock, &e), 0);
    r->backend = backend_toy.open(&c, NULL, &o, &e);
    assert_non_null(r->backend);
    m.backend = r->backend;
    r->sock = sock[1];
    r->en = engine_new(&m, sock[1], &r->status, &e);
    assert_non_null(r->en);
    r->p = malloc(sizeof *r->p);
    assert_non_null(r->p);
    peer_init(r->p, sock[0]);
    r->p->turn = rig_turn;
    r->p->turn_arg = r;
}

void
rig_start(struct rig *r, uint64_t kv_bytes)
{
    start(r, kv_bytes, true);
}

void
rig_start_without_arena(struct rig *r)
{
    start(r, 0, false);
}

void
rig_stop(struct rig *r)
{
    toy_on_step(NULL, NULL);
    toy_on_kv(NULL, NULL);
    engine_free(r->en);
    backend_toy.close(r->backend);
    kv_layout_done(&r->layout);
    free(r->arena);
    close(r->sock);
    peer_done(r->p);
    free(r->p);
}

static struct rig rig;

int
rig_setup(void **state)
{
    rig_start(&rig, 0);
    *state = &rig;
    return 0;
}

int
rig_teardown(void **state)
{
    rig_stop(*state);
    return 0;
}

void
rig_tokens(uint32_t *tokens, size_t n, uint32_t seed)
{
    uint64_t x = seed * UINT64_C(2654435761) + 1;

    for (size_t i = 0; i < n; i++) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        tokens[i] = (uint32_t)(x >> 33) % VOCAB;
    }
}

struct sample_params
rig_params(uint64_t seed, uint32_t max_tokens)
{
    struct sample_params p;

    sample_params_init(&p);
    p.seed = seed;
    p.temperature = 1.5f;
    p.top_k = 50;
    if (seed % 2 == 0) {
        p.repetition = 1.1f;
        p.penalty_window = 40;
        p.n_top = 3;
    }
    p.max_tokens = max_tokens;
    return p;
}

void
rig_check_logits(struct peer *p, uint32_t seq, const uint32_t *tokens, size_t n)
{
    float want[VOCAB], have[VOCAB];
    int fd = memfd_create("row", MFD_CLOEXEC);

    assert_int_equal(ftruncate(fd, sizeof have), 0);
    assert_int_equal(peer_ok(p, peer_logits(p, seq, fd))->end.pos, n);
    assert_int_equal(pread(fd, have, sizeof have, 0), sizeof have);
    close(fd);
    toy_row(tokens, n, VOCAB, want);
    assert_memory_equal(have, want, sizeof want);
}

void
rig_sample(const uint32_t *prompt, uint32_t n_prompt, const uint32_t *before,
           uint32_t n_before, const struct sample_params *params, struct peer_job *out)
{
    struct rig r;

    rig_start(&r, 0);
    peer_open(r.p, 0, 1);
    peer_feed(r.p, 0, 0, prompt, n_prompt, false);
    if (n_before > 0)
        peer_feed(r.p, 0, n_prompt, before, n_before, false);
    *out = *peer_ok(r.p, peer_sample(r.p, 0, n_prompt + n_before, n_before, params));
    /* The lists outlive the rig. */
    for (uint32_t i = 1; i <= r.p->n_jobs; i++)
        if (r.p->jobs[i].tokens == out->tokens)
            r.p->jobs[i] = (struct peer_job){.ended = true};
    rig_stop(&r);
}
