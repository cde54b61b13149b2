/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_PATHS_H
#define TESTS_PATHS_H

#include <stdio.h>
#include <stdlib.h>

enum { TEST_PATH = 1024 };

/* A file of the source tree: `srcdir` is its top in `make check`, and the current directory
 * for a test started by hand. */
static inline char *
src_path(char path[TEST_PATH], const char *rel)
{
    const char *top = getenv("srcdir");

    snprintf(path, TEST_PATH, "%s/%s", top == NULL ? "." : top, rel);
    return path;
}

/* A file that the build makes: `top_builddir` is its top, likewise. */
static inline char *
build_path(char path[TEST_PATH], const char *rel)
{
    const char *top = getenv("top_builddir");

    snprintf(path, TEST_PATH, "%s/%s", top == NULL ? "." : top, rel);
    return path;
}

/* A larger model's folder, which only GOLDEN_DIR may have. */
static inline char *
golden_path(char path[TEST_PATH], const char *rel)
{
    const char *top = getenv("GOLDEN_DIR");

    snprintf(path, TEST_PATH, "%s/%s", top == NULL ? "../shared/golden" : top, rel);
    return path;
}

#endif /* TESTS_PATHS_H */
