/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "base/clock.h"
#include "proto/page.h"

_Static_assert(PAGE_HEAD_SEQ == 4 && PAGE_HEAD_END == 8, "for ever: version 1");
_Static_assert((int)PAGE_DAEMON_END <= PAGE_WORDS, "a page");
_Static_assert((int)PAGE_SESSION_END <= PAGE_WORDS, "a page");

enum { TRIES = 10000 };

/* clang-format off */
const struct page_word page_head_words[] = {
#define HEAD(id, doc) {#id, doc},
#include "proto/page.def"
};

const struct page_word page_daemon_words[] = {
#define DAEMON(id, doc) {#id, doc},
#include "proto/page.def"
};

const struct page_word page_session_words[] = {
#define SESSION(id, doc) {#id, doc},
#include "proto/page.def"
};

/* clang-format on */

static uint64_t
get(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static void
set(uint64_t *word, uint64_t v)
{
    __atomic_store_n(word, v, __ATOMIC_RELAXED);
}

void
page_write(uint64_t *page, uint64_t kind, uint64_t *words, uint64_t n)
{
    const uint64_t seq = page[PAGE_HEAD_SEQ]; /* nobody else writes it */

    words[PAGE_HEAD_MAGIC] = PAGE_MAGIC;
    words[PAGE_HEAD_VERSION] = PAGE_VERSION;
    words[PAGE_HEAD_KIND] = kind;
    words[PAGE_HEAD_WORDS] = n;
    words[PAGE_HEAD_UPDATED_MS] = clock_wall_ms();
    set(&page[PAGE_HEAD_SEQ], seq + 1);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    for (uint64_t i = 0; i < n; i++) {
        if (i != PAGE_HEAD_SEQ)
            set(&page[i], words[i]);
    }
    __atomic_store_n(&page[PAGE_HEAD_SEQ], seq + 2, __ATOMIC_RELEASE);
}

/* The first n words, if nobody wrote meanwhile. */
static int
read_once(const uint64_t *page, uint64_t *words, size_t n)
{
    const uint64_t before = __atomic_load_n(&page[PAGE_HEAD_SEQ], __ATOMIC_ACQUIRE);

    for (size_t i = 0; i < n; i++)
        words[i] = get(&page[i]);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return before % 2 == 0 && get(&page[PAGE_HEAD_SEQ]) == before ? 0 : -1;
}

int
page_read(const uint64_t *page, uint64_t *words, size_t n)
{
    uint64_t head[PAGE_HEAD_END];

    if (get(&page[PAGE_HEAD_MAGIC]) != PAGE_MAGIC ||
        get(&page[PAGE_HEAD_VERSION]) != PAGE_VERSION || n > PAGE_WORDS)
        return -1;
    for (int i = 0; i < TRIES; i++) {
        if (read_once(page, head, PAGE_HEAD_END) == 0 && read_once(page, words, n) == 0) {
            for (size_t k = head[PAGE_HEAD_WORDS]; k < n; k++)
                words[k] = 0;
            return 0;
        }
    }
    return -1;
}
