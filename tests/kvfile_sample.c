/* SPDX-License-Identifier: Apache-2.0 */
/* See kvfile_sample.h. The payload is a stream of pseudo-random bytes: no block is like another. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "tests/kvfile_sample.h"

/* clang-format off */
static const uint32_t tokens[256] = {
    11, 48, 85, 122, 159, 196, 233, 270, 307, 344, 381, 418, 455, 492, 529, 566,
    603, 640, 677, 714, 751, 788, 825, 862, 899, 936, 973, 10, 47, 84, 121, 158,
    195, 232, 269, 306, 343, 380, 417, 454, 491, 528, 565, 602, 639, 676, 713, 750,
    787, 824, 861, 898, 935, 972, 9, 46, 83, 120, 157, 194, 231, 268, 305, 342,
    379, 416, 453, 490, 527, 564, 601, 638, 675, 712, 749, 786, 823, 860, 897, 934,
    971, 8, 45, 82, 119, 156, 193, 230, 267, 304, 341, 378, 415, 452, 489, 526,
    563, 600, 637, 674, 711, 748, 785, 822, 859, 896, 933, 970, 7, 44, 81, 118,
    155, 192, 229, 266, 303, 340, 377, 414, 451, 488, 525, 562, 599, 636, 673, 710,
    747, 784, 821, 858, 895, 932, 969, 6, 43, 80, 117, 154, 191, 228, 265, 302,
    339, 376, 413, 450, 487, 524, 561, 598, 635, 672, 709, 746, 783, 820, 857, 894,
    931, 968, 5, 42, 79, 116, 153, 190, 227, 264, 301, 338, 375, 412, 449, 486,
    523, 560, 597, 634, 671, 708, 745, 782, 819, 856, 893, 930, 967, 4, 41, 78,
    115, 152, 189, 226, 263, 300, 337, 374, 411, 448, 485, 522, 559, 596, 633, 670,
    707, 744, 781, 818, 855, 892, 929, 966, 3, 40, 77, 114, 151, 188, 225, 262,
    299, 336, 373, 410, 447, 484, 521, 558, 595, 632, 669, 706, 743, 780, 817, 854,
    891, 928, 965, 2, 39, 76, 113, 150, 187, 224, 261, 298, 335, 372, 409, 446,
};
/* clang-format on */

static const struct kvfile_part parts[] = {
    {.kind = 1, .dtype = 1, .layer = 2, .ratio = 4, .row_bytes = 200, .page_at = 0},
    {.kind = 2, .dtype = 2, .layer = 2, .ratio = 4, .row_bytes = 68, .page_at = 3000},
    {.kind = 3, .dtype = 1, .layer = 0, .ratio = 1, .row_bytes = 200, .span = 128},
};

const struct kvfile_model kvfile_sample_model = {
    .fingerprint = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31},
    .layout = 0x0123456789abcdef,
    .page_bytes = 5000,
    .state_most = 9000,
    .vocab = 1000,
    .n_parts = sizeof parts / sizeof *parts,
    .parts = parts,
};

const struct kvfile_sample kvfile_sample_chunk = {
    .about = {.type = KVFILE_CHUNK, .id = {{0xc0, 1}}, .pos = 4096 + 128, .n_tokens = 256},
    .tokens = tokens,
};

const struct kvfile_sample kvfile_sample_state = {
    .about = {.type = KVFILE_STATE,
              .id = {{0xa0, 2}},
              .pos = 4500,
              .state_bytes = 7777,
              .logits = true},
};

const struct kvfile_sample kvfile_sample_plain = {
    .about = {.type = KVFILE_STATE, .id = {{0xb0, 3}}, .pos = 1, .state_bytes = 9000},
};

static void
fill(uint8_t *p, uint64_t n, uint64_t seed)
{
    for (uint64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        p[i] = (uint8_t)(seed >> 56);
    }
}

uint8_t *
kvfile_sample_make(const struct kvfile_sample *s, struct kvfile_plan *plan)
{
    const struct kvfile_model *m = &kvfile_sample_model;
    uint8_t *image;

    kvfile_plan(m, &s->about, plan);
    image = aligned_alloc(KVFILE_ALIGN, plan->bytes);
    if (image == NULL)
        abort();
    memset(image, 0xee, plan->bytes); /* what seal() forgets is seen */
    if (s->about.type == KVFILE_CHUNK)
        fill(image + plan->pages_at, s->about.n_tokens / KVFILE_PAGE_TOKENS * m->page_bytes,
             1);
    else
        fill(image + plan->state_at, s->about.state_bytes, 2);
    if (s->about.logits)
        fill(image + plan->logits_at, m->vocab * sizeof(float), 3);
    kvfile_seal(m, &s->about, s->tokens, image);
    return image;
}
