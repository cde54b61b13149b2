/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/engine_watch.h"
#include "proto/link.h"
#include "tests/test.h"

static const uint64_t SECOND = 1000000000;

/* n steps of so many tokens, each so long. */
static void
add(struct link_status *s, uint64_t n, uint64_t tokens, uint64_t ns)
{
    s->steps += n;
    s->prefill_tokens += n * tokens;
    s->step_ns += n * ns;
}

static void
test_unmeasured_steps_get_what_is_set(void **state)
{
    struct engine_speed v = {0};

    (void)state;
    assert_int_equal(engine_step_limit(&v, 60 * SECOND, SECOND, 512), 572 * SECOND);
    assert_int_equal(engine_step_limit(&v, 60 * SECOND, 0, 512), 60 * SECOND);
}

static void
test_measured_steps_get_ten_times_that(void **state)
{
    struct engine_speed v = {0};
    struct link_status s = {0};

    (void)state;
    add(&s, 4, 512, 3 * SECOND);
    engine_speed_learn(&v, &s);
    /* Twice for the size, ten times for the rest. */
    assert_int_equal(engine_step_limit(&v, 10 * SECOND, SECOND, 512), 60 * SECOND);
    assert_int_equal(engine_step_limit(&v, 60 * SECOND, SECOND, 1), 60 * SECOND);
    /* Never more than without a measure, never less than the base. */
    assert_int_equal(engine_step_limit(&v, SECOND, SECOND / 100, 512),
                     SECOND + 512 * (SECOND / 100));
    add(&s, 1, 1, 1000);
    engine_speed_learn(&v, &s);
    assert_int_equal(engine_step_limit(&v, 60 * SECOND, SECOND, 1), 60 * SECOND);
}

static void
test_short_steps_bound_long_ones_by_the_token(void **state)
{
    struct engine_speed v = {0};
    struct link_status s = {0};

    (void)state;
    add(&s, 10, 1, SECOND / 100);
    engine_speed_learn(&v, &s);
    assert_int_equal(engine_step_limit(&v, SECOND, SECOND, 512),
                     10 * (SECOND / 100) * 1024);
}

static void
test_what_was_slow_once_fades(void **state)
{
    struct engine_speed v = {0};
    struct link_status s = {0};

    (void)state;
    add(&s, 1, 512, 100 * SECOND);
    engine_speed_learn(&v, &s);
    for (int i = 0; i < 1000; i++) {
        add(&s, 1, 512, SECOND);
        engine_speed_learn(&v, &s);
    }
    assert_int_equal(engine_step_limit(&v, SECOND, SECOND, 512), 20 * SECOND);
}

static void
test_nonsense_on_the_page_overflows_nothing(void **state)
{
    struct engine_speed v = {0};
    struct link_status s = {0};

    (void)state;
    add(&s, 1, 1, 1);
    engine_speed_learn(&v, &s);
    s = (struct link_status){.steps = 3,
                             .prefill_tokens = UINT64_MAX / 2,
                             .decode_tokens = 7,
                             .step_ns = UINT64_MAX};
    engine_speed_learn(&v, &s);
    assert_int_equal(engine_step_limit(&v, 60 * SECOND, SECOND, 1 << 20),
                     10 * 86400 * SECOND);
    /* An engine that was replaced begins at 0 again. */
    engine_speed_restart(&v);
    s = (struct link_status){0};
    engine_speed_learn(&v, &s);
}

static void
test_time_is_counted_from_when_a_change_was_seen(void **state)
{
    struct engine_watch w = {0};
    struct link_status s = {.beat_ns = 5, .step_began_ns = UINT64_MAX};

    (void)state;
    engine_watch_see(&w, &s, 1000);
    engine_watch_see(&w, &s, 2000);
    assert_int_equal(w.step_since,
                     1000); /* a step that begins in the future is no excuse */
    s.steps++;
    engine_watch_see(&w, &s, 3000);
    assert_int_equal(w.step_since, 3000);
    s.step_began_ns = 0;
    s.beat_ns = UINT64_MAX;
    engine_watch_see(&w, &s, 4000);
    engine_watch_see(&w, &s, 5000);
    assert_int_equal(w.beat_since, 4000);
}

static void
put_file(const char *dir, const char *name, const char *text)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void
test_the_systems_kills_are_counted(void **state)
{
    char dir[] = "/tmp/engine-watch-XXXXXX", vmstat[64], self[64], group[64], events[96];

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(vmstat, sizeof vmstat, "%s/vmstat", dir);
    snprintf(self, sizeof self, "%s/cgroup", dir);
    snprintf(group, sizeof group, "%s/ours", dir);
    snprintf(events, sizeof events, "%s/memory.events", group);
    assert_true(engine_oom_kills(vmstat, self, dir) == UINT64_MAX);
    put_file(dir, "vmstat", "oom_killer 9\nnr_free 3\noom_kill 4\n");
    assert_int_equal(engine_oom_kills(vmstat, self, dir), 4);
    put_file(dir, "cgroup", "4:memory:/other\n0::/ours\n");
    assert_int_equal(engine_oom_kills(vmstat, self, dir), 4);
    assert_int_equal(mkdir(group, 0700), 0);
    put_file(dir, "ours/memory.events", "low 0\noom 7\noom_kill 2\noom_group_kill 0\n");
    assert_int_equal(engine_oom_kills(vmstat, self, dir), 6);
    put_file(dir, "vmstat", "nr_free 3\n");
    assert_int_equal(engine_oom_kills(vmstat, self, dir), 2);
    assert_int_equal(unlink(events), 0);
    assert_int_equal(rmdir(group), 0);
    assert_int_equal(unlink(self), 0);
    assert_int_equal(unlink(vmstat), 0);
    assert_int_equal(rmdir(dir), 0);
}

static void
test_memory_is_what_the_group_may_have(void **state)
{
    char dir[] = "/tmp/engine-watch-XXXXXX", self[64], path[96];
    const uint64_t all = engine_memory("/nonexistent", "/nonexistent");

    (void)state;
    assert_true(all > 0);
    assert_non_null(mkdtemp(dir));
    snprintf(self, sizeof self, "%s/cgroup", dir);
    put_file(dir, "cgroup", "0::/up/ours\n");
    assert_true(engine_memory(self, dir) == all);
    snprintf(path, sizeof path, "%s/up", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/up/ours", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    put_file(dir, "up/ours/memory.max", "max\n");
    assert_true(engine_memory(self, dir) == all);
    put_file(dir, "up/memory.max", "4096\n"); /* that of a group above counts, too */
    assert_int_equal(engine_memory(self, dir), 4096);
    put_file(dir, "up/ours/memory.max", "1024\n");
    assert_int_equal(engine_memory(self, dir), 1024);
    snprintf(path, sizeof path, "rm -r %s", dir);
    assert_int_equal(system(path), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unmeasured_steps_get_what_is_set),
        cmocka_unit_test(test_measured_steps_get_ten_times_that),
        cmocka_unit_test(test_short_steps_bound_long_ones_by_the_token),
        cmocka_unit_test(test_what_was_slow_once_fades),
        cmocka_unit_test(test_nonsense_on_the_page_overflows_nothing),
        cmocka_unit_test(test_time_is_counted_from_when_a_change_was_seen),
        cmocka_unit_test(test_the_systems_kills_are_counted),
        cmocka_unit_test(test_memory_is_what_the_group_may_have),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
