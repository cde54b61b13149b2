/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fathomd whose disk does what the file named by FATHOM_DISK says, as long as it says so, with
 * the files of class B: linked with --wrap of the functions below.
 *
 *   hang-read, hang-write   the call comes back when the file says something else
 *   fail-read, fail-write   EIO; full-write: ENOSPC
 *   trust                   a state whose checksums are wrong is taken all the same: what a
 *                           daemon must not do, so that a test can show that it would notice
 */
#include "config.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "kvstore/kvfile.h"

int __real_kvfile_publish(struct io *io, const char *dir, const struct kvfile_about *a,
                          const uint8_t *image, uint64_t bytes, struct err *e);
int __wrap_kvfile_publish(struct io *io, const char *dir, const struct kvfile_about *a,
                          const uint8_t *image, uint64_t bytes, struct err *e);
int __real_kvfile_read(struct io *io, const char *dir, const struct kvfile_about *a,
                       uint8_t *image, uint64_t room, uint64_t *bytes, struct err *e);
int __wrap_kvfile_read(struct io *io, const char *dir, const struct kvfile_about *a,
                       uint8_t *image, uint64_t room, uint64_t *bytes, struct err *e);
int __real_kvfile_check(const uint8_t *image, uint64_t bytes, const struct kvfile_model *m,
                        const struct kvfile_about *want, struct kvfile_about *about,
                        struct kvfile_plan *plan, const uint32_t **tokens, struct err *e);
int __wrap_kvfile_check(const uint8_t *image, uint64_t bytes, const struct kvfile_model *m,
                        const struct kvfile_about *want, struct kvfile_about *about,
                        struct kvfile_plan *plan, const uint32_t **tokens, struct err *e);

static bool
says(const char *word)
{
    const char *path = getenv("FATHOM_DISK");
    FILE *f = path != NULL ? fopen(path, "re") : NULL;
    char line[64] = "";

    if (f == NULL)
        return false;
    if (fgets(line, sizeof line, f) == NULL)
        line[0] = '\0';
    fclose(f);
    line[strcspn(line, "\n")] = '\0';
    return strcmp(line, word) == 0;
}

static void
hang(const char *word)
{
    const struct timespec t = {.tv_nsec = 10 * 1000 * 1000};

    while (says(word))
        nanosleep(&t, NULL);
}

int
__wrap_kvfile_publish(struct io *io, const char *dir, const struct kvfile_about *a,
                      const uint8_t *image, uint64_t bytes, struct err *e)
{
    hang("hang-write");
    if (says("fail-write"))
        return err_set(e, ERR_READ_ONLY, EIO, "%s: no write, as was asked for", dir);
    if (says("full-write"))
        return err_set(e, ERR_QUOTA, ENOSPC, "%s: no space, as was asked for", dir);
    return __real_kvfile_publish(io, dir, a, image, bytes, e);
}

int
__wrap_kvfile_read(struct io *io, const char *dir, const struct kvfile_about *a,
                   uint8_t *image, uint64_t room, uint64_t *bytes, struct err *e)
{
    hang("hang-read");
    if (says("fail-read"))
        return err_set(e, ERR_DAMAGED, EIO, "%s: no read, as was asked for", dir);
    return __real_kvfile_read(io, dir, a, image, room, bytes, e);
}

int
__wrap_kvfile_check(const uint8_t *image, uint64_t bytes, const struct kvfile_model *m,
                    const struct kvfile_about *want, struct kvfile_about *about,
                    struct kvfile_plan *plan, const uint32_t **tokens, struct err *e)
{
    const int rc = __real_kvfile_check(image, bytes, m, want, about, plan, tokens, e);

    return rc == -1 && says("trust") ? 0 : rc;
}
