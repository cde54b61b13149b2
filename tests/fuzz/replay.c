/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzzer's corpus without a fuzzer: the fuzz target's own harness on each file of
 * the folders given, as a TAP test in every build. With none given, the corpus named after
 * the program: fuzz_frame_replay reads tests/fuzz/corpus/frame. A finding aborts, as it would
 * under libFuzzer.
 */
#include "config.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/file.h"

enum { MAX_FILE = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static int
by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* The number of files run, or -1. */
static int
replay(const char *folder)
{
    struct dirent **names;
    const int n = scandir(folder, &names, NULL, by_name);
    int done = 0;

    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];
        struct err e = {0};
        size_t len;
        char *bytes;

        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        if (names[i]->d_name[0] != '.') {
            bytes = file_read(path, MAX_FILE, &len, &e);
            if (bytes == NULL) {
                printf("# %s: %s\n", path, e.text);
                done = -1;
            } else {
                /* A buffer of exactly that size: so that a sanitizer sees a read past it. */
                uint8_t *exact = malloc(len > 0 ? len : 1);

                if (exact == NULL)
                    abort();
                memcpy(exact, bytes, len);
                LLVMFuzzerTestOneInput(exact, len);
                free(exact);
                free(bytes);
                if (done != -1)
                    done++;
            }
        }
        free(names[i]);
    }
    if (n >= 0)
        free(names);
    return done;
}

int
main(int argc, char **argv)
{
    const char *top = getenv("srcdir"), *name = strrchr(argv[0], '/');
    char folder[PATH_MAX], target[64] = "";
    int n;

    name = name != NULL ? name + 1 : argv[0];
    if (strncmp(name, "lt-", 3) == 0)
        name += 3;
    sscanf(name, "fuzz_%63s", target);
    if (strlen(target) > 7 && strcmp(target + strlen(target) - 7, "_replay") == 0)
        target[strlen(target) - 7] = '\0';
    snprintf(folder, sizeof folder, "%s/tests/fuzz/corpus/%s", top != NULL ? top : ".",
             target);
    printf("1..1\n");
    n = replay(argc > 1 ? argv[1] : folder);
    printf("%s 1 - %d files of %s\n", n > 0 ? "ok" : "not ok", n,
           argc > 1 ? argv[1] : folder);
    return n > 0 ? 0 : 1;
}
