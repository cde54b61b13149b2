/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_engine: takes the place of fathom-engine in tests of the daemon. It takes the same
 * arguments and runs the real engine loop (so the link's rules are the real ones) on the toy
 * backend of toy_backend.c: what it says is a hash of the tokens, the same on every machine
 * and after every restart. It starts in milliseconds and does wrong on demand.
 *
 *   fake_engine --model DIR --link-fd N [all options of fathom-engine] [--vocab N]
 *
 * Vocabulary, context and the sizes of the caches come from DIR/config.json if it is there (a
 * published one gives caches of true size, none of which is held), else from toy_config();
 * --vocab wins. Stop strings work if DIR/tokenizer.json is there, else token n has the bytes
 * "<n>".
 *
 * The environment variable FAKE_ENGINE says what to do wrong: words with commas between.
 * Steps are counted from 1, from the start of this process.
 *
 *   crash@K        abort() in step K                   kill@K    SIGKILL to itself in step K
 *   exit@K         _exit(70) in step K                 fault@K   step K fails with ERR_INTERNAL:
 *   hang@K         step K never ends, beat stops                 LINK_FATAL, exit 70
 *   stuck@K        as hang@K, and SIGTERM is ignored   quota@K   step K fails with ERR_QUOTA
 *   lie-pos@K      the first LINK_TOKENS or LINK_FED after step K has a position 1000 too high
 *   lie-token@K    the first LINK_TOKENS after step K holds a token beyond the vocabulary
 *   lie-job@K      the first packet of a job after step K names a job that never was
 *   lie-seq@K      as lie-job@K, with a sequence that never was
 *   garbage@K      before the first packet after step K come 100 bytes of nonsense
 *   short@K        ... a packet with a good head and no body (LINK_TOKENS)
 *   twice@K        the first LINK_END after step K is sent twice
 *   silent@K       nothing is sent any more after step K; steps and beat go on
 *   lie-vocab      LINK_READY has one token too many; lie-seqs: 1000000 sequences; lie-step:
 *                  steps of no tokens
 *   other-model    LINK_READY has the fingerprint of another model
 *   Calls of the backend that move caches are counted too, from 1: each LINK_KV_IN and
 *   LINK_KV_SET is one, a LINK_KV_OUT is one for each 8 MiB of a run and one for the state.
 *   kv-crash@K     abort() in call K                   kv-fail@K  call K fails with ERR_QUOTA
 *   kv-lie@K       the first LINK_SAVED after call K has a position 1000 too high
 *   kv-spoil@K     one byte is wrong of what the first call from K on brings out
 *   kv-slow=5ms    copies are under way for that long, beside the steps
 *   exit@start     exits with 1 at once                noready   never gets ready; beats
 *   refuse@start   LINK_FATAL model-mismatch, exit 65  load=2s   takes that long to load
 *   poison=N       every step that has token N in it ends in abort()
 *   slow=5ms       every step takes that long more
 *   model=N        of another model: its fingerprint is 32 times the byte N
 *   once:/PATH     only if PATH does not exist; it is made when the wrong is done. So a
 *                  restarted one behaves: "crash@40,once:/tmp/x". slow= and load= stay.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/num.h"
#include "engine/args.h"
#include "engine/engine.h"
#include "model/config.h"
#include "model/kvlayout.h"
#include "model/sampler.h"
#include "model/tokenizer.h"
#include "proto/link.h"
#include "tests/toy_backend.h"

enum wrong {
    NOTHING,
    CRASH,
    KILL,
    EXIT,
    FAULT,
    HANG,
    STUCK,
    QUOTA,
    LIE_POS,
    LIE_TOKEN,
    LIE_JOB,
    LIE_SEQ,
    GARBAGE,
    SHORT,
    TWICE,
    SILENT,
    LIE_VOCAB,
    OTHER_MODEL,
    LIE_SEQS,
    LIE_STEP,
    KV_CRASH,
    KV_FAIL,
    KV_LIE,
    KV_SPOIL,
    EXIT_START,
    NOREADY,
    REFUSE_START,
};

static const char *const at_step[] = {
    [CRASH] = "crash@",       [KILL] = "kill@",       [EXIT] = "exit@",
    [FAULT] = "fault@",       [HANG] = "hang@",       [STUCK] = "stuck@",
    [QUOTA] = "quota@",       [LIE_POS] = "lie-pos@", [LIE_TOKEN] = "lie-token@",
    [LIE_JOB] = "lie-job@",   [LIE_SEQ] = "lie-seq@", [GARBAGE] = "garbage@",
    [SHORT] = "short@",       [TWICE] = "twice@",     [SILENT] = "silent@",
    [KV_CRASH] = "kv-crash@", [KV_FAIL] = "kv-fail@", [KV_LIE] = "kv-lie@",
    [KV_SPOIL] = "kv-spoil@",
};

/* What FAKE_ENGINE asks for, and how far we are. */
static struct {
    enum wrong wrong;
    uint64_t step; /* at which, or at which call for caches */
    uint64_t slow_ms, load_ms, copy_ms;
    uint64_t poison; /* a token; 0: none */
    uint64_t model;  /* the byte of its fingerprint */
    const char *once;
    uint64_t steps, copies; /* so far */
    uint64_t copy_until_ns; /* copies asked for so far are over by then */
    bool told;              /* the lie has been told */
} plan;

static void
sleep_ms(uint64_t ms)
{
    struct timespec t = {.tv_sec = (time_t)(ms / 1000),
                         .tv_nsec = (long)(ms % 1000) * 1000000};

    while (nanosleep(&t, &t) == -1 && errno == EINTR)
        ;
}

static void
die_of_usage(const char *text)
{
    fprintf(stderr, "fake_engine: %s\n", text);
    exit(LINK_EXIT_USAGE);
}

static bool
read_step_word(const char *word, struct err *e)
{
    for (size_t i = 0; i < sizeof at_step / sizeof *at_step; i++) {
        const size_t n = at_step[i] == NULL ? 0 : strlen(at_step[i]);

        if (n == 0 || strncmp(word, at_step[i], n) != 0)
            continue;
        if (num_u64(word + n, 1, UINT64_MAX, &plan.step, e) == -1)
            die_of_usage(e->text);
        plan.wrong = (enum wrong)i;
        return true;
    }
    return false;
}

static void
read_plan(char *words)
{
    struct err e;

    for (char *w = strtok(words, ","); w != NULL; w = strtok(NULL, ",")) {
        if (strcmp(w, "exit@start") == 0)
            plan.wrong = EXIT_START;
        else if (strcmp(w, "refuse@start") == 0)
            plan.wrong = REFUSE_START;
        else if (strcmp(w, "noready") == 0)
            plan.wrong = NOREADY;
        else if (strcmp(w, "lie-vocab") == 0)
            plan.wrong = LIE_VOCAB;
        else if (strcmp(w, "other-model") == 0)
            plan.wrong = OTHER_MODEL;
        else if (strcmp(w, "lie-seqs") == 0)
            plan.wrong = LIE_SEQS;
        else if (strcmp(w, "lie-step") == 0)
            plan.wrong = LIE_STEP;
        else if (strncmp(w, "once:", 5) == 0)
            plan.once = w + 5;
        else if (strncmp(w, "slow=", 5) == 0) {
            if (num_duration_ms(w + 5, 0, 60000, &plan.slow_ms, &e) == -1)
                die_of_usage(e.text);
        } else if (strncmp(w, "kv-slow=", 8) == 0) {
            if (num_duration_ms(w + 8, 0, 60000, &plan.copy_ms, &e) == -1)
                die_of_usage(e.text);
        } else if (strncmp(w, "poison=", 7) == 0) {
            if (num_u64(w + 7, 1, UINT32_MAX, &plan.poison, &e) == -1)
                die_of_usage(e.text);
        } else if (strncmp(w, "model=", 6) == 0) {
            if (num_u64(w + 6, 1, 255, &plan.model, &e) == -1)
                die_of_usage(e.text);
        } else if (strncmp(w, "load=", 5) == 0) {
            if (num_duration_ms(w + 5, 0, 600000, &plan.load_ms, &e) == -1)
                die_of_usage(e.text);
        } else if (!read_step_word(w, &e)) {
            die_of_usage("FAKE_ENGINE has a word that I do not know");
        }
    }
    if (plan.once != NULL && access(plan.once, F_OK) == 0)
        plan.wrong = NOTHING;
}

/* The wrong is being done: a next process need not. */
static void
mark_done(void)
{
    int fd;

    if (plan.once != NULL &&
        (fd = open(plan.once, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)) != -1)
        close(fd);
}

static int
step_goes_wrong(struct err *e)
{
    mark_done();
    switch (plan.wrong) {
    case CRASH: abort();
    case KILL: kill(getpid(), SIGKILL); break;
    case EXIT: _exit(LINK_EXIT_FAULT);
    case FAULT: return err_set(e, ERR_INTERNAL, 0, "the device is lost, as was asked for");
    case QUOTA: return err_set(e, ERR_QUOTA, 0, "no room, as was asked for");
    case STUCK: signal(SIGTERM, SIG_IGN); break;
    default: break;
    }
    for (;;)
        sleep_ms(1000);
}

static bool
holds_poison(const struct step *s)
{
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        for (uint32_t k = 0; k < s->seqs[i].n_tokens; k++) {
            if (s->seqs[i].tokens[k] == plan.poison)
                return true;
        }
    }
    return false;
}

static int
before_step(void *arg, uint64_t number, const struct step *s, struct err *e)
{
    (void)arg;
    plan.steps = number;
    if (plan.slow_ms > 0)
        sleep_ms(plan.slow_ms);
    if (plan.poison != 0 && holds_poison(s))
        abort();
    if (number == plan.step && plan.wrong >= CRASH && plan.wrong <= QUOTA)
        return step_goes_wrong(e);
    return 0;
}

static int
on_copy(void *arg, enum toy_kv what, uint64_t number, uint32_t seq, struct err *e)
{
    (void)arg;
    (void)seq;
    if (what == TOY_KV_BUSY)
        return clock_ns() < plan.copy_until_ns;
    plan.copies = number;
    plan.copy_until_ns = clock_ns() + plan.copy_ms * 1000000;
    if (plan.wrong == KV_CRASH && number == plan.step) {
        mark_done();
        abort();
    }
    if (plan.wrong == KV_FAIL && number == plan.step) {
        mark_done();
        return err_set(e, ERR_QUOTA, 0, "no room for the caches, as was asked for");
    }
    if (plan.wrong == KV_SPOIL && number >= plan.step && what == TOY_KV_OUT && !plan.told) {
        plan.told = true;
        mark_done();
        return TOY_SPOIL;
    }
    return plan.copy_ms > 0 ? TOY_LATER : 0;
}

/*
 * All that the engine says passes here: the linker's --wrap=link_send. Lies are told once.
 */
int __real_link_send(int sock, struct link_head *h, const struct iovec *iov, int n_iov,
                     int fd, struct err *e);
int __wrap_link_send(int sock, struct link_head *h, const struct iovec *iov, int n_iov,
                     int fd, struct err *e);

static bool
lie_fits(const struct link_head *h)
{
    if (!plan.told && plan.wrong >= LIE_VOCAB && plan.wrong <= LIE_STEP)
        return h->type == LINK_READY;
    if (plan.wrong == KV_LIE)
        return !plan.told && h->type == LINK_SAVED && plan.copies >= plan.step;
    if (plan.told || plan.wrong < LIE_POS || plan.wrong > TWICE || plan.steps < plan.step)
        return false;
    switch (plan.wrong) {
    case LIE_POS: return h->type == LINK_TOKENS || h->type == LINK_FED;
    case LIE_TOKEN: return h->type == LINK_TOKENS;
    case TWICE: return h->type == LINK_END;
    case GARBAGE:
    case SHORT: return true;
    default: return h->type >= LINK_FED && h->type <= LINK_END;
    }
}

/* Changes a copy of what was to be sent, all in one piece. */
static void
tell_lie(struct link_head *h, uint8_t *body)
{
    struct link_ready *ready = (struct link_ready *)(void *)body;

    switch (plan.wrong) {
    case KV_LIE:
    case LIE_POS: {
        /* pos is the first word of all three structs. */
        uint64_t pos;

        memcpy(&pos, body, sizeof pos);
        pos += 1000;
        memcpy(body, &pos, sizeof pos);
        break;
    }
    case LIE_TOKEN: {
        const uint32_t id = UINT32_MAX - 5;

        memcpy(body + sizeof(struct link_tokens) + offsetof(struct sample_choice, id), &id,
               sizeof id);
        break;
    }
    case LIE_JOB: h->job += 1000000; break;
    case LIE_SEQ: h->seq += 1000000; break;
    case LIE_VOCAB: ready->vocab++; break;
    case OTHER_MODEL: ready->fingerprint[0] ^= 1; break;
    case LIE_SEQS: ready->max_seqs = 1000000; break;
    case LIE_STEP: ready->max_step_tokens = 0; break;
    default: break;
    }
}

static int
send_lie(int sock, const struct link_head *h, const struct iovec *iov, int n_iov,
         struct err *e)
{
    static _Alignas(max_align_t) uint8_t body[LINK_MAX_PACKET];
    struct link_head lie = *h;
    struct iovec one = {body, 0};

    for (int i = 0; i < n_iov; i++) {
        memcpy(body + one.iov_len, iov[i].iov_base, iov[i].iov_len);
        one.iov_len += iov[i].iov_len;
    }
    plan.told = true;
    mark_done();
    tell_lie(&lie, body);
    if (plan.wrong == GARBAGE) {
        uint8_t nonsense[100];

        memset(nonsense, 0xa5, sizeof nonsense);
        if (send(sock, nonsense, sizeof nonsense, MSG_NOSIGNAL) == -1)
            return err_set(e, ERR_UNAVAILABLE, errno, "gone");
    } else if (plan.wrong == SHORT) {
        struct link_head bare = {.type = LINK_TOKENS, .seq = h->seq, .job = h->job};

        __real_link_send(sock, &bare, NULL, 0, -1, e);
    } else if (plan.wrong == TWICE) {
        __real_link_send(sock, &lie, &one, 1, -1, e);
    }
    return __real_link_send(sock, &lie, &one, 1, -1, e);
}

int
__wrap_link_send(int sock, struct link_head *h, const struct iovec *iov, int n_iov, int fd,
                 struct err *e)
{
    if (plan.wrong == SILENT && plan.steps >= plan.step) {
        mark_done();
        return 0;
    }
    if (lie_fits(h))
        return send_lie(sock, h, iov, n_iov, e);
    return __real_link_send(sock, h, iov, n_iov, fd, e);
}

struct texts {
    struct tokenizer *tokenizer; /* NULL: names of numbers */
    char name[16];
};

static const char *
token_bytes(const void *arg, uint32_t id, size_t *len)
{
    struct texts *t = *(struct texts *const *)arg;

    if (t->tokenizer == NULL) {
        *len = (size_t)snprintf(t->name, sizeof t->name, "<%u>", id);
        return t->name;
    }
    if (tokenizer_is_control(t->tokenizer, id)) {
        *len = 0;
        return "";
    }
    return tokenizer_bytes(t->tokenizer, id, len);
}

/* Loading as the daemon sees it: permille grow, until ms are over or for ever. */
static void
load_slowly(struct link_status *st, uint64_t ms)
{
    const uint64_t began = clock_ns();

    for (;;) {
        const uint64_t gone = (clock_ns() - began) / 1000000;

        if (plan.wrong != NOREADY && gone >= ms)
            return;
        if (st != NULL) {
            __atomic_store_n(&st->beat_ns, clock_ns(), __ATOMIC_RELAXED);
            __atomic_store_n(&st->load_permille, ms > 0 && gone < ms ? gone * 1000 / ms : 0,
                             __ATOMIC_RELAXED);
        }
        sleep_ms(10);
    }
}

static int
run(const struct engine_args *a, struct link_status *status)
{
    struct model_config c;
    struct kv_layout layout;
    struct texts texts = {0}, *texts_at = &texts;
    struct engine_model m = {
        .ops = &backend_toy, .token_bytes = token_bytes, .token_arg = &texts_at};
    struct engine *en;
    struct err e;
    int exit_status;

    if (model_config_load(&c, a->model, &e) == -1)
        toy_config(&c);
    if (a->vocab > 0)
        c.vocab_size = (int)a->vocab;
    texts.tokenizer = tokenizer_load(a->model, &e);
    memset(m.fingerprint, plan.model != 0 ? (int)plan.model : 0xfa, sizeof m.fingerprint);
    if (kv_layout_init(&layout, &c, a->opts.mtp, &e) == -1)
        return LINK_EXIT_MODEL;
    m.layout = &layout;
    m.arena = a->opts.arena;
    m.arena_bytes = a->opts.arena_bytes;
    m.backend = backend_toy.open(&c, NULL, &a->opts, &e);
    if (m.backend == NULL)
        return LINK_EXIT_FAULT;
    toy_on_step(before_step, NULL);
    toy_on_kv(on_copy, NULL);
    en = engine_new(&m, a->link_fd, status, &e);
    if (en == NULL) {
        log_line(LOG_ERROR, "fake engine text=\"%s\"", e.text);
        return LINK_EXIT_FAULT;
    }
    exit_status = engine_run(en);
    engine_free(en);
    backend_toy.close(m.backend);
    kv_layout_done(&layout);
    tokenizer_free(texts.tokenizer);
    return exit_status;
}

int
main(int argc, char **argv)
{
    const char *words = getenv("FAKE_ENGINE");
    char *copy = strdup(words == NULL ? "" : words);
    struct engine_args a;
    struct link_status *status;
    struct err e;
    int exit_status;

    engine_set_process();
    log_init("fake_engine", LOG_NOTICE);
    read_plan(copy);
    if (engine_args_parse(&a, argc, argv, &e) == -1)
        die_of_usage(e.text);
    status = engine_args_status(&a, &e);
    if (status == NULL && e.code != ERR_NONE)
        die_of_usage(e.text);
    if (engine_args_arena(&a, &e) == -1)
        die_of_usage(e.text);
    if (plan.wrong == EXIT_START || plan.wrong == REFUSE_START)
        mark_done();
    if (plan.wrong == EXIT_START)
        _exit(1);
    if (plan.wrong == REFUSE_START) {
        err_set(&e, ERR_MODEL_MISMATCH, 0, "this model is not for me, as was asked for");
        engine_say_fatal(a.link_fd, &e);
        return LINK_EXIT_MODEL;
    }
    if (plan.wrong == NOREADY)
        mark_done();
    load_slowly(status, plan.load_ms);
    exit_status = run(&a, status);
    free(copy);
    return exit_status;
}
