/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_ARENA_H
#define KVSTORE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

/*
 * The host arena: one memfd that the daemon makes and owns and that the engine maps too. It holds
 * images of files (kvfile.h), each in one extent aligned to 4096: on their way to the disk, on
 * their way back, or kept because memory is quicker than the disk. Main thread; the memory of an
 * extent may be used by others as its holder says.
 */
struct arena;

struct extent {
    uint64_t at, bytes; /* bytes 0: none */
};

/* fd -1: makes one of `bytes` (rounded up to 2 MiB), sealed against growing and shrinking, with
 * huge pages if the system has them to give. fd: an earlier one of ours (FDSTORE), taken over if it
 * is of that size and seals, else closed and made anew. */
int arena_open(uint64_t bytes, int fd, struct arena **out, struct err *e);
void arena_close(struct arena *a); /* NULL is fine */
int arena_fd(const struct arena *a);
uint8_t *arena_at(const struct arena *a, struct extent x);
uint64_t arena_bytes(const struct arena *a);
uint64_t arena_used(const struct arena *a);
bool arena_huge(const struct arena *a);

/* First fit. False: no hole is that large. */
bool arena_take(struct arena *a, uint64_t bytes, struct extent *out);
/* That very place, of whole pages. False: something of it is taken, or does not exist. */
bool arena_take_at(struct arena *a, struct extent x);
void arena_give(struct arena *a, struct extent *x); /* none is fine; becomes none */

#endif /* KVSTORE_ARENA_H */
