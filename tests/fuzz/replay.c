/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzzer's corpus without a fuzzer: the fuzz target's own harness on each file of
 * the folder given, and on mutations of it that are the same every time, as a TAP test in
 * every build. With none given, the corpus named after the program: fuzz_frame_replay reads
 * tests/fuzz/corpus/frame. A finding aborts, as it would under libFuzzer.
 */
#include "config.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/file.h"

enum { MAX_FILE = 1 << 20, MUTATIONS = 100 };

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static int
by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static uint64_t
next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Changes 1 to 4 things: a bit, a byte, some bytes copied over others, cut out, or all that
 * follows cut off. Returns the new length, which is never larger. */
static size_t
mutate(uint8_t *p, size_t len, uint64_t *state)
{
    for (uint64_t n = 1 + next_random(state) % 4; n > 0 && len > 0; n--) {
        const size_t at = next_random(state) % len, from = next_random(state) % len;
        const size_t most = len - (at > from ? at : from);
        const size_t k = 1 + next_random(state) % (most < 16 ? most : 16);

        switch (next_random(state) % 5) {
        case 0: p[at] ^= (uint8_t)(1u << next_random(state) % 8); break;
        case 1: p[at] = (uint8_t)next_random(state); break;
        case 2: memmove(p + at, p + from, k); break;
        case 3:
            memmove(p + at, p + at + k, len - at - k);
            len -= k;
            break;
        default: len = at; break;
        }
    }
    return len;
}

/* In a buffer of exactly that size: so that a sanitizer sees a read past it. */
static void
run(const char *bytes, size_t len, uint64_t *mutation)
{
    uint8_t *changed = malloc(len + 1), *exact;

    if (changed == NULL)
        abort();
    memcpy(changed, bytes, len);
    if (mutation != NULL)
        len = mutate(changed, len, mutation);
    exact = malloc(len > 0 ? len : 1);
    if (exact == NULL)
        abort();
    memcpy(exact, changed, len);
    LLVMFuzzerTestOneInput(exact, len);
    free(exact);
    free(changed);
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
        uint64_t mutation = 0x9e3779b97f4a7c15;
        size_t len;
        char *bytes;

        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        if (names[i]->d_name[0] != '.') {
            bytes = file_read(path, MAX_FILE, &len, &e);
            if (bytes == NULL) {
                printf("# %s: %s\n", path, e.text);
                done = -1;
            } else {
                run(bytes, len, NULL);
                for (int k = 0; k < MUTATIONS; k++)
                    run(bytes, len, &mutation);
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
