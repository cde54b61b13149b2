/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints: the real small ones, and copies of flash-tiny with one thing wrong, in one file
 * or in shards. A checkpoint here is a list of tensors that can be changed and written out.
 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/file.h"
#include "model/manifest.h"
#include "model/safetensors.h"
#include "model/weights.h"
#include "tests/paths.h"
#include "tests/test.h"

struct item {
    char name[SAFETENSORS_MAX_NAME + 1];
    struct tensor t; /* .name is not used */
    int shard;
};

struct checkpoint {
    struct model_config c;
    struct item *items;
    size_t n;
    char dir[64];
};

struct heard {
    size_t n;
    char lines[64][256];
};

static struct safetensors *original;
static uint8_t *zeros;

static void
hear(void *arg, const char *line)
{
    struct heard *h = arg;

    if (h->n < 64)
        snprintf(h->lines[h->n], sizeof h->lines[0], "%s", line);
    h->n++;
}

static void
file_in(char path[TEST_PATH], const struct checkpoint *k, const char *name)
{
    snprintf(path, TEST_PATH, "%s/%s", k->dir, name);
}

static void
remove_all(const struct checkpoint *k)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "s0.safetensors", "s1.safetensors",
                                        "s2.safetensors"};
    char path[TEST_PATH];

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        file_in(path, k, names[i]);
        unlink(path);
    }
}

/* The tensors of flash-tiny as they are. */
static void
begin(struct checkpoint *k)
{
    char path[TEST_PATH];
    struct err e;

    *k = (struct checkpoint){.n = safetensors_count(original)};
    assert_int_equal(
        model_config_load(&k->c, src_path(path, "tests/golden/flash-tiny"), &e), 0);
    k->items = calloc(k->n + 8, sizeof *k->items); /* room to add some */
    assert_non_null(k->items);
    for (size_t i = 0; i < k->n; i++) {
        k->items[i].t = *safetensors_at(original, i);
        snprintf(k->items[i].name, sizeof k->items[i].name, "%s", k->items[i].t.name);
        k->items[i].shard = (int)(i % 3);
    }
    snprintf(k->dir, sizeof k->dir, "weights-test.XXXXXX");
    assert_non_null(mkdtemp(k->dir));
}

static void
end(struct checkpoint *k)
{
    remove_all(k);
    rmdir(k->dir);
    free(k->items);
}

static struct item *
item(struct checkpoint *k, const char *name)
{
    for (size_t i = 0; i < k->n; i++)
        if (strcmp(k->items[i].name, name) == 0)
            return &k->items[i];
    fail_msg("%s: not in the original", name);
    return NULL;
}

/* Those of one shard, or all with shard -1. */
static void
write_file(const struct checkpoint *k, const char *file, int shard)
{
    char path[TEST_PATH], *header = NULL;
    const char *comma = "";
    uint64_t at = 0, n;
    size_t len;
    FILE *f = open_memstream(&header, &len);

    fputc('{', f);
    for (size_t i = 0; i < k->n; i++) {
        const struct item *x = &k->items[i];

        if (shard >= 0 && x->shard != shard)
            continue;
        fprintf(f, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", comma, x->name,
                dtype_name(x->t.dtype));
        for (int d = 0; d < x->t.n_dims; d++)
            fprintf(f, d == 0 ? "%" PRId64 : ",%" PRId64, x->t.dims[d]);
        fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + x->t.n_bytes);
        at += x->t.n_bytes;
        comma = ",";
    }
    fputc('}', f);
    fclose(f);
    n = len;

    file_in(path, k, file);
    f = fopen(path, "w");
    assert_non_null(f);
    fwrite(&n, sizeof n, 1, f);
    fwrite(header, len, 1, f);
    for (size_t i = 0; i < k->n; i++)
        if (shard < 0 || k->items[i].shard == shard)
            fwrite(k->items[i].t.data, 1, k->items[i].t.n_bytes, f);
    assert_int_equal(fclose(f), 0);
    free(header);
}

static void
write_index(const struct checkpoint *k, const char *format, uint64_t more_bytes)
{
    uint64_t total = more_bytes;
    char path[TEST_PATH];
    FILE *f;

    file_in(path, k, "model.safetensors.index.json");
    f = fopen(path, "w");
    assert_non_null(f);
    for (size_t i = 0; i < k->n; i++)
        total += k->items[i].t.n_bytes;
    fprintf(f, "{\"metadata\":{\"total_size\":%" PRIu64 "},\"weight_map\":{", total);
    for (size_t i = 0; i < k->n; i++) {
        fprintf(f, "%s\"%s\":\"", i == 0 ? "" : ",", k->items[i].name);
        fprintf(f, "%s%d.safetensors\"", format, k->items[i].shard);
    }
    fputs("}}", f);
    assert_int_equal(fclose(f), 0);
}

static void
write_shards(const struct checkpoint *k)
{
    write_file(k, "s0.safetensors", 0);
    write_file(k, "s1.safetensors", 1);
    write_file(k, "s2.safetensors", 2);
}

static void
expect_good(const struct checkpoint *k, uint8_t print[32])
{
    struct heard h = {0};
    struct err e = {0};
    struct weights *w = weights_open(k->dir, &k->c, hear, &h, &e);

    if (w == NULL)
        fail_msg("%s", e.text);
    assert_int_equal(h.n, 0);
    weights_fingerprint(w, print);
    weights_close(w);
}

static void
expect_bad(const struct checkpoint *k, struct heard *h, enum err_code code,
           const char *says)
{
    struct err e = {0};
    struct weights *w;

    *h = (struct heard){0};
    w = weights_open(k->dir, &k->c, hear, h, &e);
    if (w != NULL || e.code != code || strstr(e.text, says) == NULL)
        fail_msg("wanted \"%s\": %s: %s", says, err_name(e.code), e.text);
}

static void
heard_line(const struct heard *h, const char *says)
{
    for (size_t i = 0; i < h->n && i < 64; i++)
        if (strstr(h->lines[i], says) != NULL)
            return;
    fail_msg("no line says \"%s\"; the first of %zu: %s", says, h->n, h->lines[0]);
}

static void
test_shipped_models(void **state)
{
    static const struct {
        const char *dir;
        uint64_t bytes;
    } models[] = {{"tests/golden/flash-tiny", 6749893}, {"models/fathom-mini", 37291516}};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct model_config c;
        struct heard h = {0};
        struct err e;
        char path[TEST_PATH];
        struct weights *w;

        assert_int_equal(model_config_load(&c, src_path(path, models[i].dir), &e), 0);
        w = weights_open(path, &c, hear, &h, &e);
        if (w == NULL)
            fail_msg("%s", e.text);
        assert_int_equal(weights_bytes(w), models[i].bytes);
        assert_non_null(weights_find(w, "embed.weight"));
        assert_non_null(weights_findf(w, "layers.%d.attn.%s.weight", 3, "wq_a"));
        assert_null(weights_find(w, "layers.99.attn.wq_a.weight"));
        assert_null(weights_findf(w, "%300s", "x"));
        weights_close(w);
    }
}

static void
test_larger_models(void **state)
{
    static const char *const names[] = {"bf16-tiny", "pro-tiny"};
    int found = 0;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct model_config c;
        struct err e;
        char path[TEST_PATH];
        struct weights *w;

        if (access(golden_path(path, names[i]), R_OK) == -1)
            continue;
        assert_int_equal(model_config_load(&c, path, &e), 0);
        w = weights_open(path, &c, NULL, NULL, &e);
        if (w == NULL)
            fail_msg("%s", e.text);
        weights_close(w);
        found++;
    }
    if (found == 0)
        skip();
}

static void
test_copies_are_the_same_model(void **state)
{
    struct checkpoint k;
    uint8_t one[32], shards[32], other[32];
    char path[TEST_PATH];
    FILE *f;

    (void)state;
    begin(&k);
    write_file(&k, "model.safetensors", -1);
    expect_good(&k, one);
    remove_all(&k);
    write_shards(&k);
    write_index(&k, "s", 0);
    expect_good(&k, shards);
    assert_memory_equal(one, shards, 32);

    /* One bit of one payload byte: nobody refuses it, but it is another model. */
    file_in(path, &k, "s1.safetensors");
    f = fopen(path, "r+");
    fseek(f, -1000, SEEK_END);
    const int was = fgetc(f);
    fseek(f, -1, SEEK_CUR);
    fputc(was ^ 0x04, f);
    fclose(f);
    expect_good(&k, other);
    assert_memory_not_equal(one, other, 32);

    /* The same weights under another config are another model too. */
    write_shards(&k);
    k.c.route_scale *= 2;
    expect_good(&k, other);
    assert_memory_not_equal(one, other, 32);
    end(&k);
}

/* Several faults in one file, all reported in one run. */
static void
test_every_fault_is_reported(void **state)
{
    struct checkpoint k;
    struct item *x;
    struct heard h;

    (void)state;
    begin(&k);
    x = item(&k, "embed.weight"); /* [512, 128] */
    x->t.dims[0] = 128;
    x->t.dims[1] = 512;
    x = item(&k, "norm.weight"); /* [128] -> [1, 128] */
    x->t.n_dims = 2;
    x->t.dims[0] = 1;
    x->t.dims[1] = 128;
    x = item(&k, "layers.3.attn.wq_a.scale");
    x->t.dtype = DTYPE_F8_E4M3;
    snprintf(item(&k, "layers.2.ffn.experts.5.w3.weight")->name, 32, "layers.2.stranger");
    x = item(&k, "mtp.0.hc_head_fn");
    *x = k.items[--k.n];
    write_file(&k, "model.safetensors", -1);
    expect_bad(&k, &h, ERR_DAMAGED, "6 faults");
    assert_int_equal(h.n, 6);
    heard_line(&h, "embed.weight: BF16 [128, 512]; want BF16 [512, 128]");
    heard_line(&h, "norm.weight: BF16 [1, 128]; want BF16 [128]");
    heard_line(&h, "layers.3.attn.wq_a.scale: F8_E4M3 [1, 1]; want F8_E8M0 [1, 1]");
    heard_line(&h, "layers.2.ffn.experts.5.w3.weight: missing; want I8 [128, 64]");
    heard_line(&h, "layers.2.stranger: I8 [128, 64] in model.safetensors");
    heard_line(&h, "mtp.0.hc_head_fn: missing; want F32 [4, 512]");
    end(&k);
}

static void
test_another_vocabulary(void **state)
{
    struct checkpoint k;
    struct heard h;

    (void)state;
    begin(&k);
    write_file(&k, "model.safetensors", -1);
    k.c.vocab_size = 500;
    expect_bad(&k, &h, ERR_DAMAGED, "faults");
    assert_int_equal(h.n, 4); /* embed, head, two routing tables */
    heard_line(&h, "head.weight: BF16 [512, 128]; want BF16 [500, 128]");
    end(&k);
}

static void
test_routing_tables(void **state)
{
    static const int64_t bad[] = {8, -1, INT64_MIN, 1000000};
    struct checkpoint k;
    struct heard h;
    int64_t *table;

    (void)state;
    begin(&k);
    struct item *x = item(&k, "layers.1.ffn.gate.tid2eid"); /* [512, 3] */
    table = malloc(x->t.n_bytes);
    assert_non_null(table);
    memcpy(table, x->t.data, x->t.n_bytes);
    x->t.data = table;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const int64_t was = table[1000];

        table[1000] = bad[i];
        write_file(&k, "model.safetensors", -1);
        expect_bad(&k, &h, ERR_DAMAGED, "token 333 goes to expert");
        assert_int_equal(h.n, 1);
        table[1000] = was;
    }
    free(table);
    end(&k);
}

static void
test_shards_that_disagree(void **state)
{
    struct checkpoint k;
    struct heard h;
    char path[TEST_PATH];
    struct item *x;

    (void)state;
    begin(&k);
    write_shards(&k);
    write_index(&k, "s", 1);
    expect_bad(&k, &h, ERR_DAMAGED, "the index says 6749894");

    x = item(&k, "norm.weight");
    x->shard = (x->shard + 1) % 3; /* in the index only */
    write_index(&k, "s", 0);
    expect_bad(&k, &h, ERR_DAMAGED, "norm.weight: in s");
    x->shard = (x->shard + 2) % 3;

    k.items[k.n] = *x; /* in two shards */
    k.items[k.n].shard = (x->shard + 1) % 3;
    k.n++;
    write_shards(&k);
    k.n--;
    write_index(&k, "s", x->t.n_bytes);
    expect_bad(&k, &h, ERR_DAMAGED, "norm.weight: in s");
    heard_line(&h, "and again in");

    snprintf(k.items[k.n].name, 32, "stranger"); /* in the index, in no shard */
    write_shards(&k);
    k.n++;
    write_index(&k, "s", -k.items[k.n - 1].t.n_bytes);
    expect_bad(&k, &h, ERR_DAMAGED, "stranger: the index says");
    k.n--;

    write_index(&k, "s", 0);
    file_in(path, &k, "s1.safetensors");
    unlink(path);
    expect_bad(&k, &h, ERR_DAMAGED, "s1.safetensors");
    end(&k);
}

static void
test_shard_names(void **state)
{
    static const char *const bad[] = {"../s", "a/s", "/etc/s",
                                      ".s",   "a b", "..%2fs\\u000a"};
    struct checkpoint k;
    struct heard h;
    char path[TEST_PATH];

    (void)state;
    begin(&k);
    write_shards(&k);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_index(&k, bad[i], 0);
        expect_bad(&k, &h, ERR_DAMAGED, "want the name of a file in the same folder");
    }
    file_in(path, &k, "model.safetensors.index.json");
    assert_int_equal(truncate(path, 1000), 0);
    expect_bad(&k, &h, ERR_DAMAGED, "not JSON");
    unlink(path);
    expect_bad(&k, &h, ERR_NOT_FOUND, "neither");
    end(&k);
}

/* The experts' own format decides, whatever config.json says (spec 1.1). */
static int
add_item(void *arg, const struct manifest_tensor *m)
{
    struct checkpoint *k = arg;
    struct item *x = &k->items[k->n++];

    *x = (struct item){
        .t = {
            .dtype = m->dtype, .n_dims = m->n_dims, .data = zeros, .n_bytes = m->n_bytes}};
    memcpy(x->t.dims, m->dims, sizeof x->t.dims);
    snprintf(x->name, sizeof x->name, "%s", m->name);
    return 0;
}

static void
test_expert_formats(void **state)
{
    struct checkpoint k;
    struct err e;

    (void)state;
    begin(&k);
    for (int fp4 = 0; fp4 < 2; fp4++) {
        struct weights *w;

        k.n = 0;
        k.c.fp4_experts = fp4;
        manifest_walk(&k.c, add_item, &k);
        write_file(&k, "model.safetensors", -1);
        k.c.fp4_experts = !fp4;
        w = weights_open(k.dir, &k.c, NULL, NULL, &e);
        if (w == NULL)
            fail_msg("%s", e.text);
        assert_int_equal(weights_config(w)->fp4_experts, fp4);
        weights_close(w);
    }
    end(&k);
}

/* Cut anywhere, or with any bit of the header flipped, a checkpoint is refused. */
static void
test_cuts_and_flips(void **state)
{
    struct checkpoint k;
    struct heard h;
    char path[TEST_PATH];
    struct file_map m;
    struct err e;
    uint64_t n_header;
    FILE *f;

    (void)state;
    begin(&k);
    write_file(&k, "model.safetensors", -1);
    file_in(path, &k, "model.safetensors");
    assert_int_equal(file_map(&m, path, &e), 0);
    memcpy(&n_header, m.p, sizeof n_header);
    file_unmap(&m);
    f = fopen(path, "r+");
    assert_non_null(f);
    for (long at = 0; at < (long)(8 + n_header); at += at < 200 ? 1 : 389) {
        const int mask = 1 << at % 7;
        int was;

        fseek(f, at, SEEK_SET);
        was = fgetc(f);
        fseek(f, at, SEEK_SET);
        fputc(was ^ mask, f);
        fflush(f);
        expect_bad(&k, &h, ERR_DAMAGED, "");
        fseek(f, at, SEEK_SET);
        fputc(was, f);
        fflush(f);
    }
    fclose(f);
    expect_good(&k, (uint8_t[32]){0}); /* all was put back */
    for (long len = 6800000; len > 0; len = len * 2 / 3) {
        assert_int_equal(truncate(path, len), 0);
        expect_bad(&k, &h, ERR_DAMAGED, "model.safetensors");
    }
    end(&k);
}

static int
open_original(void **state)
{
    char path[TEST_PATH];
    struct err e;

    (void)state;
    zeros = calloc(1, 1 << 20);
    original =
        safetensors_open(src_path(path, "tests/golden/flash-tiny/model.safetensors"), &e);
    return original == NULL || zeros == NULL ? -1 : 0;
}

static int
close_original(void **state)
{
    (void)state;
    safetensors_close(original);
    free(zeros);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shipped_models),
        cmocka_unit_test(test_larger_models),
        cmocka_unit_test(test_copies_are_the_same_model),
        cmocka_unit_test(test_every_fault_is_reported),
        cmocka_unit_test(test_another_vocabulary),
        cmocka_unit_test(test_routing_tables),
        cmocka_unit_test(test_shards_that_disagree),
        cmocka_unit_test(test_shard_names),
        cmocka_unit_test(test_expert_formats),
        cmocka_unit_test(test_cuts_and_flips),
    };

    return cmocka_run_group_tests_name("weights", tests, open_original, close_original);
}
