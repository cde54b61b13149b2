/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

struct err;

/* A whole small file, NUL-terminated behind its bytes; the caller's to free(). More than
 * `max` bytes is ERR_INVALID, a missing file ERR_NOT_FOUND. */
char *file_read(const char *path, size_t max, size_t *len, struct err *e);

/* Makes a directory with mode 0700, and with 0755 what is missing above it. One that is there is
 * fine, whatever its mode. ERR_READ_ONLY names what cannot be made. */
int file_make_dir(const char *path, struct err *e);

/* A regular file mapped read-only and private. An empty one maps to p == NULL, len 0. */
struct file_map {
    const uint8_t *p;
    size_t len;
};

int file_map(struct file_map *m, const char *path, struct err *e);
void file_unmap(struct file_map *m);

#endif /* BASE_FILE_H */
