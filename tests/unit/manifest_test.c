/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manifest and the cache sizes against the published totals (spec 15), and against the
 * names in real files by way of weights_test.c.
 */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "model/kvsize.h"
#include "model/manifest.h"
#include "tests/paths.h"
#include "tests/test.h"

struct expected {
    const char *dir;
    uint64_t n_tensors, checkpoint_params, checkpoint_bytes, backbone_params,
        backbone_bytes;
    uint64_t draft_params, draft_bytes;

    struct {
        int layer;
        uint64_t params, bytes;
    } layers[3]; /* one of each kind */

    struct {
        enum manifest_part part;
        uint64_t params, bytes;
    } parts[3]; /* of all layers together */

    int64_t per_token, page, session[4];
};

static const struct expected published[] = {
    {
        .dir = "tests/data/flash",
        .n_tensors = 69187,
        .checkpoint_params = 290942289362,
        .checkpoint_bytes = 159609485896,
        .backbone_params = 284332240471,
        .backbone_bytes = 156015698140,
        .draft_params = 6610048891,
        .draft_bytes = 3593787756,
        .layers = {{0, 6576416374, 3566148952},
                   {2, 6595558646, 3596055640},
                   {3, 6580676982, 3568596312}},
        .parts = {{PART_ATTENTION, 44 * UINT64_C(106956352), 44 * UINT64_C(106964608)},
                  {PART_INDEXER, 21 * UINT64_C(10749056), 21 * UINT64_C(13112064)},
                  {PART_EXPERTS, 44 * UINT64_C(6442450944), 44 * UINT64_C(3422552064)}},
        .per_token = 3514,
        .page = 449824,
        .session = {19019008, 130575360, 476040192, 3700378624},
    },
    {
        .dir = "tests/data/pro",
        .n_tensors = 145116,
        .checkpoint_params = 1598837347742,
        .checkpoint_bytes = 864704792696,
        .backbone_params = 1572997201763,
        .backbone_bytes = 850748205004,
        .draft_params = 25840145979,
        .draft_bytes = 13956587692,
        .layers = {{0, 25744655030, 13874466328},
                   {2, 25768646454, 13909746200},
                   {4, 25768646838, 13903542296}},
        .parts = {{PART_ATTENTION, 62 * UINT64_C(299894912), 62 * UINT64_C(299915648)},
                  {PART_COMPRESSOR, 30 * UINT64_C(14684672) + 31 * UINT64_C(7406080),
                   30 * UINT64_C(29377536) + 31 * UINT64_C(14943232)},
                  {PART_SHARED, 62 * UINT64_C(66060288), 62 * UINT64_C(66064320)}},
        .per_token = 5031,
        .page = 30 * 32 * 652 + 31 * 584,
        .session = {28422592, 188140544, 682750976, 5299115008},
    },
};

static void
load(struct model_config *c, const char *dir)
{
    char path[TEST_PATH];
    struct err e;

    if (model_config_load(c, src_path(path, dir), &e) == -1)
        fail_msg("%s", e.text);
}

static void
test_published_totals(void **state)
{
    static struct manifest_totals t;
    struct model_config c;

    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        const struct expected *x = &published[i];

        load(&c, x->dir);
        manifest_total(&c, &t);
        assert_int_equal(t.all.n_tensors, x->n_tensors);
        assert_int_equal(t.all.n_params, x->checkpoint_params);
        assert_int_equal(t.all.n_bytes, x->checkpoint_bytes);
        assert_int_equal(t.backbone.n_params, x->backbone_params);
        assert_int_equal(t.backbone.n_bytes, x->backbone_bytes);
        assert_int_equal(t.draft.n_params, x->draft_params);
        assert_int_equal(t.draft.n_bytes, x->draft_bytes);
        for (int k = 0; k < 3; k++) {
            assert_int_equal(t.layer[x->layers[k].layer].n_params, x->layers[k].params);
            assert_int_equal(t.layer[x->layers[k].layer].n_bytes, x->layers[k].bytes);
            assert_int_equal(t.part[x->parts[k].part].n_params, x->parts[k].params);
            assert_int_equal(t.part[x->parts[k].part].n_bytes, x->parts[k].bytes);
        }
    }
}

static void
test_published_cache_sizes(void **state)
{
    static const int64_t tokens[] = {1024, 32768, 131072, 1048576};
    struct model_config c;

    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        load(&c, published[i].dir);
        assert_int_equal(kv_bytes_per_token(&c), published[i].per_token);
        assert_int_equal(kv_page_bytes(&c), published[i].page);
        for (int k = 0; k < 4; k++)
            assert_int_equal(kv_session_bytes(&c, tokens[k]), published[i].session[k]);
    }
}

static void
test_row_sizes(void **state)
{
    static const struct {
        int head_dim, rope_dim;
        int64_t bytes;
    } rows[] = {{512, 64, 584}, {192, 64, 264}, {128, 64, 200}, {128, 32, 168}};

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(kv_row_bytes(rows[i].head_dim, rows[i].rope_dim), rows[i].bytes);
    assert_int_equal(kv_index_row_bytes(128), 68);
    assert_int_equal(kv_index_row_bytes(32), 17);
}

/* By hand: one layer of each kind at a window of 8, after 20 tokens. */
static void
test_small_session(void **state)
{
    struct model_config c = {.n_layers = 3,
                             .head_dim = 128,
                             .rope_dim = 64,
                             .index_head_dim = 32,
                             .window = 8,
                             .ratio = {0, 4, 16}};
    const int64_t windows = 3 * 8 * 200, csa = 5 * (200 + 17), hca = 1 * 200;
    const int64_t csa_state = 8 * 2 * (128 + 32) * 2 * 4, hca_state = 16 * 128 * 2 * 4;

    (void)state;
    assert_int_equal(kv_session_bytes(&c, 20), windows + csa + hca + csa_state + hca_state);
    assert_int_equal(kv_session_bytes(&c, 3), 3 * 3 * 200 + csa_state + hca_state);
}

struct look {
    const char *name;
    int found;
    struct manifest_tensor t;
};

static int
look_for(void *arg, const struct manifest_tensor *t)
{
    struct look *l = arg;

    if (strcmp(t->name, l->name) != 0)
        return 0;
    l->found++;
    l->t = *t;
    return 0;
}

static void
test_some_tensors(void **state)
{
    static const struct {
        const char *name;
        enum tensor_dtype dtype;
        int n_dims;
        int64_t a, b;
        int found;
    } want[] = {
        {"embed.weight", DTYPE_BF16, 2, 129280, 4096, 1},
        {"hc_head_scale", DTYPE_F32, 1, 1, 0, 1},
        {"layers.0.ffn.gate.tid2eid", DTYPE_I64, 2, 129280, 6, 1},
        {"layers.0.ffn.gate.bias", DTYPE_F32, 1, 256, 0, 0},
        {"layers.3.ffn.gate.bias", DTYPE_F32, 1, 256, 0, 1},
        {"layers.3.ffn.gate.tid2eid", DTYPE_I64, 2, 129280, 6, 0},
        {"layers.0.attn.compressor.ape", DTYPE_F32, 2, 4, 1024, 0},
        {"layers.2.attn.compressor.ape", DTYPE_F32, 2, 4, 1024, 1},
        {"layers.3.attn.compressor.ape", DTYPE_F32, 2, 128, 512, 1},
        {"layers.3.attn.indexer.wq_b.weight", DTYPE_F8_E4M3, 2, 8192, 1024, 0},
        {"layers.2.attn.indexer.wq_b.scale", DTYPE_F8_E8M0, 2, 64, 8, 1},
        {"layers.42.ffn.experts.255.w2.weight", DTYPE_I8, 2, 4096, 1024, 1},
        {"layers.42.ffn.experts.255.w2.scale", DTYPE_F8_E8M0, 2, 4096, 64, 1},
        {"layers.42.ffn.experts.256.w2.weight", DTYPE_I8, 2, 4096, 1024, 0},
        {"mtp.0.e_proj.scale", DTYPE_F8_E8M0, 2, 32, 32, 1},
        {"mtp.0.ffn.gate.bias", DTYPE_F32, 1, 256, 0, 1},
        {"mtp.0.embed.weight", DTYPE_BF16, 2, 129280, 4096, 0},
    };
    struct model_config c;

    (void)state;
    load(&c, "tests/data/flash");
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct look l = {.name = want[i].name};

        assert_int_equal(manifest_walk(&c, look_for, &l), 0);
        if (l.found != want[i].found)
            fail_msg("%s: %d times", want[i].name, l.found);
        if (l.found == 0)
            continue;
        assert_int_equal(l.t.dtype, want[i].dtype);
        assert_int_equal(l.t.n_dims, want[i].n_dims);
        assert_int_equal(l.t.dims[0], want[i].a);
        assert_int_equal(l.t.dims[1], want[i].b);
    }
}

static int
stop_at_ten(void *arg, const struct manifest_tensor *t)
{
    (void)t;
    return ++*(int *)arg == 10 ? 42 : 0;
}

static void
test_a_walk_can_be_ended(void **state)
{
    struct model_config c;
    int n = 0;

    (void)state;
    load(&c, "tests/data/flash");
    assert_int_equal(manifest_walk(&c, stop_at_ten, &n), 42);
    assert_int_equal(n, 10);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_totals),
        cmocka_unit_test(test_published_cache_sizes),
        cmocka_unit_test(test_row_sizes),
        cmocka_unit_test(test_small_session),
        cmocka_unit_test(test_some_tensors),
        cmocka_unit_test(test_a_walk_can_be_ended),
    };

    return cmocka_run_group_tests_name("manifest", tests, NULL, NULL);
}
