/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mailbox.h"

struct mailbox {
    pthread_mutex_t mu;
    struct mail *head, **tail; /* mu */
    bool closed;               /* mu */
    int fd;
};

struct mailbox *
mailbox_new(struct err *e)
{
    struct mailbox *mb = calloc(1, sizeof *mb);

    if (mb == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a mailbox");
        return NULL;
    }
    mb->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (mb->fd == -1) {
        err_set(e, ERR_INTERNAL, errno, "eventfd: %s", strerror(errno));
        free(mb);
        return NULL;
    }
    pthread_mutex_init(&mb->mu, NULL);
    mb->tail = &mb->head;
    return mb;
}

void
mailbox_free(struct mailbox *mb)
{
    if (mb == NULL)
        return;
    assert(mb->head == NULL);
    pthread_mutex_destroy(&mb->mu);
    close(mb->fd);
    free(mb);
}

int
mailbox_fd(const struct mailbox *mb)
{
    return mb->fd;
}

bool
mailbox_post(struct mailbox *mb, struct mail *m)
{
    const uint64_t one = 1;
    bool was_empty, taken;

    m->next = NULL;
    pthread_mutex_lock(&mb->mu);
    taken = !mb->closed;
    was_empty = mb->head == NULL;
    if (taken) {
        *mb->tail = m;
        mb->tail = &m->next;
    }
    pthread_mutex_unlock(&mb->mu);

    /* One wake-up for each time the box stops being empty; the count cannot overflow. */
    if (taken && was_empty && write(mb->fd, &one, sizeof one) != sizeof one)
        assert(!"eventfd write");
    return taken;
}

struct mail *
mailbox_take_all(struct mailbox *mb)
{
    struct mail *all;
    uint64_t n;

    /* Clear the wake-up before looking: a post in between makes the fd readable again. */
    if (read(mb->fd, &n, sizeof n) == -1)
        assert(errno == EAGAIN);
    pthread_mutex_lock(&mb->mu);
    all = mb->head;
    mb->head = NULL;
    mb->tail = &mb->head;
    pthread_mutex_unlock(&mb->mu);
    return all;
}

void
mailbox_close(struct mailbox *mb)
{
    pthread_mutex_lock(&mb->mu);
    mb->closed = true;
    pthread_mutex_unlock(&mb->mu);
}
