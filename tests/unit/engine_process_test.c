/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine as a process of its own, as fathomd sees it: killed at any token and started again
 * it draws the same, from tokens or from caches that it left behind; it ends with the daemon; what
 * cannot be loaded is said. On the small model
 * with the real program, and with the fake one, which dies inside chosen steps.
 */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "tests/link_peer.h"
#include "tests/test.h"

/* A path in that tree; good until the call after the next. */
static const char *
under(const char *variable, const char *path)
{
    static char at[2][4096];
    static int turn;
    const char *top = getenv(variable);

    turn = !turn;
    snprintf(at[turn], sizeof at[turn], "%s/%s", top == NULL ? "." : top, path);
    return at[turn];
}

struct child {
    pid_t pid;
    struct peer *p;
    struct link_status *status;
};

/* For the caches, outliving the engines: state, row of logits, one page. */
enum { STATE_AT = 0, ROW_AT = 8 << 20, PAGE_AT = 12 << 20, ARENA = 16 << 20 };

static int arena_fd = -1;
static uint8_t *arena;

static void
spawn(struct child *c, const char *program, const char *model)
{
    int sock[2], fd = memfd_create("status", 0);
    char link[16], status[16], at[16], bytes[16];
    struct err e;

    assert_int_equal(link_pair(sock, &e), 0);
    assert_int_equal(ftruncate(fd, sizeof *c->status), 0);
    c->status = mmap(NULL, sizeof *c->status, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(c->status, MAP_FAILED);
    snprintf(status, sizeof status, "%d", fd);
    c->pid = fork();
    assert_true(c->pid >= 0);
    if (c->pid == 0) {
        snprintf(link, sizeof link, "%d", dup(sock[1])); /* a copy outlives the exec */
        snprintf(at, sizeof at, "%d", arena_fd);
        snprintf(bytes, sizeof bytes, "%d", ARENA);
        execl(program, program, "--model", model, "--link-fd", link, "--status-fd", status,
              "--threads", "2", "--max-seqs", "4", "--arena-fd", at, "--arena-bytes", bytes,
              (char *)NULL);
        _exit(127);
    }
    close(sock[1]);
    close(fd);
    c->p = malloc(sizeof *c->p);
    assert_non_null(c->p);
    peer_init(c->p, sock[0]);
}

/* Its exit status, or minus the signal that ended it. */
static int
reap(struct child *c)
{
    int status;

    while (waitpid(c->pid, &status, 0) == -1)
        assert_int_equal(errno, EINTR);
    munmap(c->status, sizeof *c->status);
    peer_done(c->p);
    free(c->p);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

enum { PROMPT = 150, DRAWN = 12 };

static void
prompt(uint32_t t[PROMPT])
{
    for (uint32_t i = 0; i < PROMPT; i++)
        t[i] = 5 + i * i * 31 % 7000;
}

static struct sample_params
params(void)
{
    struct sample_params p;

    sample_params_init(&p);
    p.seed = 99;
    p.temperature = 1;
    p.max_tokens = DRAWN;
    return p;
}

/* Starts on what has been drawn so far, beside `company` sequences, and goes on until all is
 * drawn or the engine has died; returns the number drawn. */
static uint32_t
go_on(struct child *c, uint32_t drawn[DRAWN], uint32_t n, uint32_t company,
      uint32_t kill_at)
{
    const struct sample_params sp = params();
    struct peer *p = c->p;
    uint32_t t[PROMPT], job;
    const struct peer_job *j;

    prompt(t);
    peer_wait_ready(p);
    if (n == DRAWN)
        return n; /* it was quicker than the signal */
    for (uint32_t i = 1; i <= company; i++) {
        peer_open(p, i, i);
        peer_feed(p, i, 0, t + i, 20 * i, false);
        peer_sample(p, i, 20 * i, 0, &sp);
    }
    peer_open(p, 0, 1);
    peer_feed(p, 0, 0, t, PROMPT, false);
    if (n > 0)
        peer_feed(p, 0, PROMPT, drawn, n, false);
    job = peer_sample(p, 0, PROMPT + n, n, &sp);
    j = &p->jobs[job];
    while (!j->ended && !p->is_gone) {
        if (j->n_tokens >= kill_at)
            kill(c->pid, SIGKILL);
        peer_wait_some(p);
    }
    if (j->n_tokens > 0)
        memcpy(drawn + n, j->tokens, j->n_tokens * sizeof *drawn);
    return n + (uint32_t)j->n_tokens;
}

static void
check_kills(const char *program, const char *model, const uint32_t *kills, size_t n_kills)
{
    uint32_t want[DRAWN], drawn[DRAWN], n = 0;
    struct child c;

    spawn(&c, program, model);
    assert_int_equal(go_on(&c, want, 0, 0, UINT32_MAX), DRAWN);
    peer_quit(c.p);
    assert_int_equal(reap(&c), LINK_EXIT_OK);

    for (size_t i = 0; i < n_kills; i++) {
        spawn(&c, program, model);
        n = go_on(&c, drawn, n, 1 + (uint32_t)i % 3, kills[i]);
        assert_true(n >= kills[i]);
        kill(c.pid, SIGKILL);
        assert_int_equal(reap(&c), -SIGKILL);
    }
    spawn(&c, program, model);
    assert_int_equal(go_on(&c, drawn, n, 0, UINT32_MAX), DRAWN);
    assert_memory_equal(drawn, want, sizeof want);
    peer_quit(c.p);
    assert_int_equal(reap(&c), LINK_EXIT_OK);

    /* The control: one token received is another. */
    drawn[0] ^= 1;
    spawn(&c, program, model);
    assert_int_equal(go_on(&c, drawn, 1, 0, UINT32_MAX), DRAWN);
    assert_memory_not_equal(drawn + 1, want + 1, sizeof want - sizeof *want);

    /* The daemon goes away without a word. */
    close(c.p->sock);
    c.p->sock = -1;
    assert_int_equal(reap(&c), LINK_EXIT_OK);
}

static void
test_killed_and_replayed(void **state)
{
    static const uint32_t kills[] = {3, 0, 4};

    (void)state;
    check_kills(under("top_builddir", "engine/fathom-engine"),
                under("srcdir", "models/fathom-mini"), kills, 3);
}

enum { BEFORE = 5 }; /* drawn by the engine that saves */

static const struct peer_job *
save(struct child *c)
{
    const struct link_kv_run page = {.first = 0, .n = 1, .at = PAGE_AT};

    return peer_wait(c->p, peer_kv_out(c->p, 2, STATE_AT, ROW_AT, &page, 1));
}

/* Draws some tokens and saves behind the last but one: the state that is at hand. */
static const struct peer_job *
draw_and_save(struct child *c, uint32_t tokens[PROMPT + DRAWN])
{
    struct sample_params sp = params();
    const struct peer_job *j;

    prompt(tokens);
    peer_open(c->p, 2, 1);
    peer_feed(c->p, 2, 0, tokens, PROMPT, false);
    sp.max_tokens = BEFORE;
    j = peer_ok(c->p, peer_sample(c->p, 2, PROMPT, 0, &sp));
    memcpy(tokens + PROMPT, j->tokens, BEFORE * sizeof *tokens);
    return save(c);
}

/* The others, by an engine that has the caches: what was chosen, with its probability. */
static void
bring_back_and_draw(struct child *c, const uint32_t *tokens,
                    struct sample_choice out[DRAWN - BEFORE])
{
    const uint32_t n = PROMPT + BEFORE - 1;
    const struct sample_params sp = params();
    const struct peer_job *j;

    peer_open(c->p, 1, 1);
    peer_kv_in(c->p, 1, 0, PAGE_AT, tokens, n);
    peer_ok(c->p, peer_kv_set(c->p, 1, n, STATE_AT, ROW_AT));
    peer_feed(c->p, 1, n, tokens + n, 1, false);
    j = peer_ok(c->p, peer_sample(c->p, 1, n + 1, BEFORE, &sp));
    assert_int_equal(j->n_tokens, DRAWN - BEFORE);
    memcpy(out, j->choices, (DRAWN - BEFORE) * sizeof *out);
}

static void
check_caches(const char *program, const char *model)
{
    struct sample_choice want[DRAWN], got[DRAWN - BEFORE];
    uint32_t tokens[PROMPT + DRAWN];
    const struct sample_params sp = params();
    const struct peer_job *j;
    struct child c;

    prompt(tokens);
    spawn(&c, program, model);
    peer_open(c.p, 0, 1);
    peer_feed(c.p, 0, 0, tokens, PROMPT, false);
    j = peer_ok(c.p, peer_sample(c.p, 0, PROMPT, 0, &sp));
    memcpy(want, j->choices, sizeof want);
    peer_quit(c.p);
    reap(&c);

    memset(arena, 0xee, ARENA);
    spawn(&c, program, model);
    j = draw_and_save(&c, tokens);
    assert_int_equal(j->end.reason, LINK_DONE);
    assert_int_equal(j->saved.pos, PROMPT + BEFORE - 1);
    kill(c.pid, SIGKILL);
    assert_int_equal(reap(&c), -SIGKILL);

    spawn(&c, program, model);
    bring_back_and_draw(&c, tokens, got);
    assert_memory_equal(got, want + BEFORE, sizeof got);
    peer_ok(c.p, peer_close(c.p, 1));
    memset(arena + STATE_AT, 0, 4096); /* the control */
    bring_back_and_draw(&c, tokens, got);
    assert_memory_not_equal(got, want + BEFORE, sizeof got);
    peer_quit(c.p);
    assert_int_equal(reap(&c), LINK_EXIT_OK);
}

static void
test_caches_outlive_the_engine(void **state)
{
    (void)state;
    check_caches(under("top_builddir", "engine/fathom-engine"),
                 under("srcdir", "models/fathom-mini"));
    check_caches(under("top_builddir", "tests/fake_engine"),
                 under("srcdir", "models/fathom-mini"));
    setenv("FAKE_ENGINE", "kv-slow=20ms", 1);
    check_caches(under("top_builddir", "tests/fake_engine"),
                 under("srcdir", "models/fathom-mini"));
    unsetenv("FAKE_ENGINE");
}

/* What the tests of the daemon ask of the fake one. */
static void
test_the_fake_one_goes_wrong_with_caches(void **state)
{
    const char *program = under("top_builddir", "tests/fake_engine");
    const char *model = under("srcdir", "models/fathom-mini");
    struct sample_choice good[DRAWN - BEFORE], got[DRAWN - BEFORE];
    uint32_t tokens[PROMPT + DRAWN];
    const struct peer_job *j;
    struct child c;

    (void)state;
    setenv("FAKE_ENGINE", "kv-fail@2", 1);
    spawn(&c, program, model);
    j = draw_and_save(&c, tokens);
    assert_int_equal(j->end.err.code, ERR_QUOTA);
    assert_int_equal(save(&c)->end.reason, LINK_DONE); /* the calls behind it do not */
    bring_back_and_draw(&c, tokens, good);
    peer_quit(c.p);
    reap(&c);

    setenv("FAKE_ENGINE", "kv-lie@1", 1);
    spawn(&c, program, model);
    assert_int_equal(draw_and_save(&c, tokens)->saved.pos, PROMPT + BEFORE - 1 + 1000);
    peer_quit(c.p);
    reap(&c);

    setenv("FAKE_ENGINE", "kv-spoil@2", 1);
    spawn(&c, program, model);
    assert_int_equal(draw_and_save(&c, tokens)->end.reason, LINK_DONE);
    bring_back_and_draw(&c, tokens, got);
    assert_memory_not_equal(got, good, sizeof got);
    peer_quit(c.p);
    reap(&c);

    setenv("FAKE_ENGINE", "kv-crash@1", 1);
    spawn(&c, program, model);
    unsetenv("FAKE_ENGINE");
    prompt(tokens);
    peer_open(c.p, 2, 1);
    peer_feed(c.p, 2, 0, tokens, PROMPT, false);
    peer_kv_out(c.p, 2, STATE_AT, ROW_AT, NULL, 0);
    while (peer_wait_some(c.p))
        ;
    assert_int_equal(reap(&c), -SIGABRT);
}

static void
test_the_fake_one_is_killed_too(void **state)
{
    static const uint32_t kills[] = {1, 1, 2, 0, 3};

    (void)state;
    setenv("FAKE_ENGINE", "slow=2ms", 1); /* the signal is to come before all is drawn */
    check_kills(under("top_builddir", "tests/fake_engine"),
                under("srcdir", "models/fathom-mini"), kills, 5);
    unsetenv("FAKE_ENGINE");
}

static void
test_the_fake_one_dies_within_steps(void **state)
{
    static const struct {
        const char *words;
        int exit;
    } cases[] = {
        {"kill@1", -SIGKILL},         {"kill@2", -SIGKILL}, {"crash@5", -SIGABRT},
        {"fault@7", LINK_EXIT_FAULT}, {"exit@9", 70},
    };

    const char *program = under("top_builddir", "tests/fake_engine");
    const char *model = under("srcdir", "models/fathom-mini");
    uint32_t want[DRAWN], drawn[DRAWN], n;
    struct child c;

    (void)state;
    spawn(&c, program, model);
    go_on(&c, want, 0, 0, UINT32_MAX);
    peer_quit(c.p);
    reap(&c);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setenv("FAKE_ENGINE", cases[i].words, 1);
        spawn(&c, program, model);
        unsetenv("FAKE_ENGINE");
        n = go_on(&c, drawn, 0, 0, UINT32_MAX);
        assert_true(n < DRAWN);
        assert_int_equal(c.p->is_fatal, cases[i].exit == LINK_EXIT_FAULT && i == 3);
        assert_int_equal(reap(&c), cases[i].exit);
        spawn(&c, program, model);
        assert_int_equal(go_on(&c, drawn, n, 0, UINT32_MAX), DRAWN);
        assert_memory_equal(drawn, want, sizeof want);
        peer_quit(c.p);
        reap(&c);
    }
}

static void
test_loading_fails_with_a_reason(void **state)
{
    static const struct {
        const char *model;
        enum err_code code;
    } cases[] = {
        {"nowhere", ERR_NOT_FOUND},
        {"docs", ERR_NOT_FOUND},
    };

    struct child c;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        spawn(&c, under("top_builddir", "engine/fathom-engine"),
              under("srcdir", cases[i].model));
        while (peer_wait_some(c.p))
            ;
        assert_false(c.p->is_ready);
        assert_true(c.p->is_fatal);
        assert_int_equal(c.p->fatal.code, cases[i].code);
        assert_int_equal(reap(&c), LINK_EXIT_MODEL);
    }
}

static void
test_it_is_not_started_by_hand(void **state)
{
    char command[4200], line[512] = "";
    FILE *f;
    int status;

    (void)state;
    snprintf(command, sizeof command, "'%s' --model x 2>&1",
             under("top_builddir", "engine/fathom-engine"));
    f = popen(command, "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    status = pclose(f);
    assert_int_equal(WEXITSTATUS(status), LINK_EXIT_USAGE);
    assert_non_null(strstr(line, "started by fathomd"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed_and_replayed),
        cmocka_unit_test(test_caches_outlive_the_engine),
        cmocka_unit_test(test_the_fake_one_goes_wrong_with_caches),
        cmocka_unit_test(test_the_fake_one_is_killed_too),
        cmocka_unit_test(test_the_fake_one_dies_within_steps),
        cmocka_unit_test(test_loading_fails_with_a_reason),
        cmocka_unit_test(test_it_is_not_started_by_hand),
    };

    signal(SIGPIPE, SIG_IGN);
    arena_fd = memfd_create("arena", 0);
    if (arena_fd == -1 || ftruncate(arena_fd, ARENA) == -1)
        return 99;
    arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, arena_fd, 0);
    if (arena == MAP_FAILED)
        return 99;
    return cmocka_run_group_tests_name("engine process", tests, NULL, NULL);
}
