/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fathomd that answers first and commits later: linked with --wrap=store_commit. What a daemon
 * must not be, so that daemon-store.sh can show that it would notice.
 */
#include "config.h"

#include "daemon/store.h"

bool __real_store_commit(struct store *st, struct session *s, struct store_wait *w);
bool __wrap_store_commit(struct store *st, struct session *s, struct store_wait *w);

bool
__wrap_store_commit(struct store *st, struct session *s, struct store_wait *w)
{
    (void)w;
    store_commit_soon(st, s);
    return true;
}
