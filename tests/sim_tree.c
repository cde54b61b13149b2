/* SPDX-License-Identifier: Apache-2.0 */
/* Folders and files in memory for sim_fs.c: copies share the files' bytes until one is changed. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "tests/sim_impl.h"

void *
sim_must(void *p)
{
    if (p == NULL)
        abort();
    return p;
}

static struct blob *
blob_new(void)
{
    struct blob *b = sim_must(calloc(1, sizeof *b));

    b->refs = 1;
    return b;
}

static void
blob_drop(struct blob *b)
{
    if (b == NULL || --b->refs > 0)
        return;
    free(b->p);
    free(b);
}

/* One that nobody else sees, to be changed, with room to hold n bytes. */
static struct blob *
own(struct tree *t, int inode, size_t n)
{
    struct inode *i = &t->inodes[inode];
    struct blob *b = i->data;

    if (b->refs > 1) {
        i->data = blob_new();
        i->data->p = sim_must(malloc(b->held + 1));
        if (b->held > 0)
            memcpy(i->data->p, b->p, b->held);
        i->data->n = b->n;
        i->data->held = b->held;
        i->data->room = b->held + 1;
        blob_drop(b);
        b = i->data;
    }
    b->hashed = false;
    if (n > b->room) {
        b->room = n + n / 2;
        b->p = sim_must(realloc(b->p, b->room));
    }
    return b;
}

int
tree_new_inode(struct tree *t, bool is_dir)
{
    if (t->n == t->room) {
        t->room = t->room != 0 ? 2 * t->room : 16;
        t->inodes = sim_must(realloc(t->inodes, t->room * sizeof *t->inodes));
    }
    t->inodes[t->n] = (struct inode){.is_dir = is_dir};
    if (!is_dir)
        t->inodes[t->n].data = blob_new();
    return (int)t->n++;
}

void
tree_copy(struct tree *to, const struct tree *from)
{
    *to = (struct tree){.n = from->n, .room = from->n};
    to->inodes = sim_must(calloc(from->n + 1, sizeof *to->inodes));
    for (size_t i = 0; i < from->n; i++) {
        const struct inode *a = &from->inodes[i];
        struct inode *b = &to->inodes[i];

        *b = *a;
        if (a->data != NULL)
            a->data->refs++;
        b->room = a->n_entries;
        b->entries = a->n_entries > 0 ? sim_must(malloc(a->n_entries * sizeof *b->entries))
                                      : NULL;
        if (a->n_entries > 0)
            memcpy(b->entries, a->entries, a->n_entries * sizeof *b->entries);
    }
}

void
tree_done(struct tree *t)
{
    for (size_t i = 0; i < t->n; i++) {
        blob_drop(t->inodes[i].data);
        free(t->inodes[i].entries);
    }
    free(t->inodes);
    *t = (struct tree){0};
}

static struct entry *
find(const struct tree *t, int dir, const char *name)
{
    const struct inode *d = &t->inodes[dir];

    for (size_t i = 0; i < d->n_entries; i++)
        if (strcmp(d->entries[i].name, name) == 0)
            return &d->entries[i];
    return NULL;
}

int
tree_find(const struct tree *t, int dir, const char *name)
{
    const struct entry *e = find(t, dir, name);

    return e != NULL ? e->inode : SIM_NO_INODE;
}

void
tree_set(struct tree *t, int dir, const char *name, int inode)
{
    struct inode *d = &t->inodes[dir];
    struct entry *e = find(t, dir, name);

    if (e == NULL) {
        if (d->n_entries == d->room) {
            d->room = d->room != 0 ? 2 * d->room : 8;
            d->entries = sim_must(realloc(d->entries, d->room * sizeof *d->entries));
        }
        e = &d->entries[d->n_entries++];
        snprintf(e->name, sizeof e->name, "%s", name);
    }
    e->inode = inode;
}

void
tree_clear(struct tree *t, int dir, const char *name)
{
    struct inode *d = &t->inodes[dir];
    struct entry *e = find(t, dir, name);

    if (e != NULL)
        *e = d->entries[--d->n_entries];
}

void
tree_length(struct tree *t, int inode, uint64_t n)
{
    struct blob *b;

    if (t->inodes[inode].data->n == n)
        return;
    b = own(t, inode, 0);
    if (b->held > n)
        b->held = n;
    b->n = n;
}

void
tree_write(struct tree *t, int inode, const uint8_t *p, uint64_t n, uint64_t at)
{
    struct blob *b;

    if (n == 0)
        return;
    if (at + n > t->inodes[inode].data->n)
        tree_length(t, inode, at + n);
    b = own(t, inode, at + n);
    if (at > b->held)
        memset(b->p + b->held, 0, at - b->held);
    memcpy(b->p + at, p, n);
    if (at + n > b->held)
        b->held = at + n;
}

void
tree_read(const struct tree *t, int inode, uint8_t *p, uint64_t n, uint64_t at)
{
    const struct blob *b = t->inodes[inode].data;
    const uint64_t held = at >= b->held ? 0 : b->held - at < n ? b->held - at : n;

    if (held > 0)
        memcpy(p, b->p + at, held);
    if (n > held)
        memset(p + held, 0, n - held);
}

uint64_t
tree_hash(struct tree *t, int inode)
{
    struct blob *b = t->inodes[inode].data;
    size_t n = b->held;

    if (b->hashed)
        return b->hash;
    while (n > 0 &&
           b->p[n - 1] == 0) /* zeros that are held and zeros that are not are the same */
        n--;
    b->hash = XXH3_64bits_withSeed(b->p, n, b->n);
    b->hashed = true;
    return b->hash;
}
