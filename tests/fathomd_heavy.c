/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fathomd that takes a little more time and memory for each session than it should: linked with
 * --wrap=session_found,--wrap=session_visible. What daemon-many.sh must notice.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/session.h"

enum { HELD = 8192, FOUND_US = 300, LISTED_US = 20 };

struct session *__real_session_found(struct user *owner, size_t max_checkpoints,
                                     struct err *e);
struct session *__wrap_session_found(struct user *owner, size_t max_checkpoints,
                                     struct err *e);
bool __real_session_visible(const struct session *s, const struct cred *who);
bool __wrap_session_visible(const struct session *s, const struct cred *who);

static uint64_t
processor_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void
waste(uint64_t us)
{
    const uint64_t until = processor_us() + us;

    while (processor_us() < until)
        ;
}

struct session *
__wrap_session_found(struct user *owner, size_t max_checkpoints, struct err *e)
{
    static void *held; /* each points to the one before: none is lost */
    void **p = malloc(HELD);

    if (p != NULL) {
        memset(p, 1, HELD);
        *p = held;
        held = p;
    }
    waste(FOUND_US);
    return __real_session_found(owner, max_checkpoints, e);
}

bool
__wrap_session_visible(const struct session *s, const struct cred *who)
{
    waste(LISTED_US);
    return __real_session_visible(s, who);
}
