/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PROTO_PAGE_H
#define PROTO_PAGE_H

#include <stddef.h>
#include <stdint.h>

/*
 * Statistics pages (page.def): written by fathomd, in memory that nobody else can write to, read
 * by clients as often as they like without asking. A sequence lock: readers never hold the writer
 * up, and try again if it came in between. One writer; any thread or process reads.
 */
enum {
    PAGE_BYTES = 4096,
    PAGE_WORDS = PAGE_BYTES / 8,
    PAGE_VERSION = 1,
    PAGE_OF_DAEMON = 1,
    PAGE_OF_SESSION = 2,
};

#define PAGE_MAGIC UINT64_C(0x5441545348544146) /* "FATHSTAT" */

enum page_head {

#define HEAD(id, doc) PAGE_HEAD_##id,
#include "proto/page.def"
    PAGE_HEAD_END
};

enum page_daemon {
    PAGE_DAEMON_FIRST = PAGE_HEAD_END - 1,

#define DAEMON(id, doc) PAGE_DAEMON_##id,
#include "proto/page.def"
    PAGE_DAEMON_END
};

enum page_session {
    PAGE_SESSION_FIRST = PAGE_HEAD_END - 1,

#define SESSION(id, doc) PAGE_SESSION_##id,
#include "proto/page.def"
    PAGE_SESSION_END
};

struct page_word {
    const char *name, *doc;
};

/* In the order of their words; head, daemon's and session's. */
extern const struct page_word page_head_words[PAGE_HEAD_END],
    page_daemon_words[PAGE_DAEMON_END - PAGE_HEAD_END],
    page_session_words[PAGE_SESSION_END - PAGE_HEAD_END];

/* page: PAGE_BYTES. words [n], of which the head's first are filled in by it. */
void page_write(uint64_t *page, uint64_t kind, uint64_t *words, uint64_t n);

/* The first n words as they stood at one moment, 0 for those that the writer does not know.
 * -1: not a page that we can read, or its writer has died in the middle of it. */
int page_read(const uint64_t *page, uint64_t *words, size_t n);

#endif /* PROTO_PAGE_H */
