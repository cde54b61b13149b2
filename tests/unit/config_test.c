/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.json: the published files, then the same with one thing wrong at a time.
 */
#include "config.h"

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/config.h"
#include "tests/paths.h"
#include "tests/test.h"

static json_t *
published(const char *name)
{
    char rel[64], path[TEST_PATH];
    json_t *root;

    snprintf(rel, sizeof rel, "tests/data/%s/config.json", name);
    root = json_load_file(src_path(path, rel), 0, NULL);
    assert_non_null(root);
    return root;
}

static int
parse(const json_t *root, struct model_config *c, struct err *e)
{
    char *text = json_dumps(root, JSON_ENCODE_ANY);
    int r;

    *e = (struct err){0};
    r = model_config_parse(c, text, strlen(text), e);
    free(text);
    return r;
}

static void
test_published_files(void **state)
{
    struct model_config c;
    struct err e;
    char path[TEST_PATH];
    int csa = 0, hca = 0;

    (void)state;
    assert_int_equal(model_config_load(&c, src_path(path, "tests/data/flash"), &e), 0);
    assert_int_equal(c.n_layers, 43);
    assert_int_equal(c.vocab_size, 129280);
    assert_int_equal(c.index_topk, 512);
    assert_true(c.quantized && c.fp4_experts);
    assert_int_equal(c.max_positions, 1048576);
    assert_true(c.rms_eps == 1e-6f && c.route_scale == 1.5f && c.rope_theta == 10000);
    for (int l = 0; l < c.n_layers; l++) {
        csa += c.ratio[l] == 4;
        hca += c.ratio[l] == 128;
    }
    assert_int_equal(csa, 21);
    assert_int_equal(hca, 20);
    assert_int_equal(c.ratio[43], 0);

    assert_int_equal(model_config_load(&c, src_path(path, "tests/data/pro"), &e), 0);
    assert_int_equal(c.n_layers, 61);
    assert_int_equal(c.n_experts, 384);
    assert_true(c.route_scale == 2.5f);

    assert_int_equal(model_config_load(&c, src_path(path, "models/fathom-mini"), &e), 0);
    assert_int_equal(c.hidden, 384);
    assert_int_equal(model_config_load(&c, src_path(path, "tests/data"), &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
}

/* Keys of the published file that may be absent: they change no number, or say which of two. */
static bool
may_be_absent(const char *key)
{
    static const char *const keys[] = {
        "architectures", "attention_dropout",    "initializer_range", "quantization_config",
        "torch_dtype",   "transformers_version", "use_cache"};

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i], key) == 0)
            return true;
    return false;
}

static void
check_without(json_t *root, json_t *in, const char *key)
{
    json_t *was = json_incref(json_object_get(in, key));
    struct model_config c;
    struct err e;
    int r;

    json_object_del(in, key);
    r = parse(root, &c, &e);
    if (may_be_absent(key)) {
        if (r != 0)
            fail_msg("without %s: %s", key, e.text);
    } else if (r != -1 || e.code != ERR_DAMAGED || strstr(e.text, key) == NULL ||
               strstr(e.text, "missing; want") == NULL) {
        fail_msg("without %s: ret %d, %s: %s", key, r, err_name(e.code), e.text);
    }
    json_object_set_new(in, key, was);
}

static void
check_type(json_t *root, json_t *in, const char *key)
{
    json_t *was = json_incref(json_object_get(in, key));
    struct model_config c;
    struct err e;

    if (strcmp(key, "transformers_version") != 0 && strcmp(key, "use_cache") != 0) {
        /* null is of no key's type */
        json_object_set_new(in, key, json_null());
        if (parse(root, &c, &e) != -1 || strstr(e.text, key) == NULL)
            fail_msg("%s null: %s: %s", key, err_name(e.code), e.text);
    }
    json_object_set_new(in, key, was);
}

/* Each key of the file, and of the two objects in it, gone and then of the wrong type. */
static void
test_each_key(void **state)
{
    static const char *const inside[] = {NULL, "rope_scaling", "quantization_config"};
    json_t *names = published("flash"), *root = json_deep_copy(names);
    struct model_config c;
    struct err e;
    int n = 0;

    (void)state;
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) {
        json_t *in = inside[i] == NULL ? root : json_object_get(root, inside[i]);
        json_t *keys = inside[i] == NULL ? names : json_object_get(names, inside[i]), *v;
        const char *key;

        json_object_foreach(keys, key, v)
        {
            check_without(root, in, key);
            check_type(root, in, key);
            n++;
        }
    }
    assert_true(n > 50);
    assert_int_equal(parse(root, &c, &e), 0); /* all was put back */
    json_decref(root);
    json_decref(names);
}

static const struct {
    const char *key, *value;
    enum err_code code; /* ERR_NONE: accepted */
    const char *says;
} values[] = {
    {"model_type", "\"deepseek_v41\"", ERR_MODEL_MISMATCH, "\"deepseek_v41\""},
    {"model_type", "\"llama\"", ERR_MODEL_MISMATCH, "\"llama\""},
    {"architectures", "[\"LlamaForCausalLM\"]", ERR_MODEL_MISMATCH,
     "DeepseekV4ForCausalLM"},
    {"dspark_block_size", "5", ERR_MODEL_MISMATCH, "DSpark"},
    {"attention_sinks_off", "true", ERR_MODEL_MISMATCH, "attention_sinks_off"},
    {"pretraining_tp", "1", ERR_NONE, ""},
    {"hidden_size", "4096.0", ERR_DAMAGED, "hidden_size"},
    {"hidden_size", "4100", ERR_MODEL_MISMATCH, "multiple of 128"},
    {"hidden_size", "0", ERR_MODEL_MISMATCH, "from 32 to 65536"},
    {"hidden_size", "-128", ERR_MODEL_MISMATCH, "hidden_size"},
    {"hidden_size", "9223372036854775807", ERR_MODEL_MISMATCH, "hidden_size"},
    {"hidden_size", "99999999999999999999", ERR_DAMAGED, "not JSON"},
    {"rms_norm_eps", "1e999", ERR_DAMAGED, "not JSON"},
    {"rms_norm_eps", "0", ERR_MODEL_MISMATCH, "rms_norm_eps"},
    {"rope_theta", "10000.0", ERR_NONE, ""},
    {"scoring_func", "\"softmax\"", ERR_MODEL_MISMATCH, "sqrtsoftplus"},
    {"topk_method", "\"greedy\"", ERR_MODEL_MISMATCH, "noaux_tc"},
    {"hidden_act", "\"gelu\"", ERR_MODEL_MISMATCH, "silu"},
    {"norm_topk_prob", "false", ERR_MODEL_MISMATCH, "want true"},
    {"attention_bias", "true", ERR_MODEL_MISMATCH, "want false"},
    {"tie_word_embeddings", "true", ERR_MODEL_MISMATCH, "want false"},
    {"n_shared_experts", "2", ERR_MODEL_MISMATCH, "want 1"},
    {"num_key_value_heads", "8", ERR_MODEL_MISMATCH, "want 1"},
    {"num_nextn_predict_layers", "2", ERR_MODEL_MISMATCH, "num_nextn_predict_layers"},
    {"num_hidden_layers", "44", ERR_MODEL_MISMATCH, "compress_ratios has 44 entries"},
    {"num_hidden_layers", "41", ERR_MODEL_MISMATCH, "DSpark"},
    {"num_hidden_layers", "128", ERR_MODEL_MISMATCH, "num_hidden_layers"},
    {"num_hash_layers", "44", ERR_MODEL_MISMATCH, "num_hash_layers"},
    {"num_experts_per_tok", "64", ERR_NONE, ""},
    {"n_routed_experts", "4", ERR_MODEL_MISMATCH, "num_experts_per_tok"},
    {"o_groups", "3", ERR_MODEL_MISMATCH, "divisor"},
    {"head_dim", "64", ERR_MODEL_MISMATCH, "head_dim"},
    {"head_dim", "500", ERR_MODEL_MISMATCH, "multiple of"},
    {"qk_rope_head_dim", "512", ERR_MODEL_MISMATCH, "qk_rope_head_dim"},
    {"index_head_dim", "96", ERR_MODEL_MISMATCH, "power of two"},
    {"bos_token_id", "129280", ERR_MODEL_MISMATCH, "vocab_size"},
    {"sliding_window", "8", ERR_NONE, ""},
    {"sliding_window", "0", ERR_MODEL_MISMATCH, "sliding_window"},
    {"expert_dtype", "\"fp8\"", ERR_NONE, ""},
    {"expert_dtype", "\"int4\"", ERR_MODEL_MISMATCH, "expert_dtype"},
    {"rope_scaling", "{\"type\": \"linear\"}", ERR_DAMAGED, "rope_scaling.beta_fast"},
    {"quantization_config", "{\"bits\": 4}", ERR_MODEL_MISMATCH,
     "quantization_config.bits"},
    {"compress_ratios", "[0]", ERR_MODEL_MISMATCH, "want 44"},
};

static void
test_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        json_t *root = published("flash");
        char *text, *whole;
        struct model_config c;
        struct err e = {0};
        int r;

        /* As text, so that values that jansson would not make can be tried too. */
        json_object_del(root, values[i].key);
        text = json_dumps(root, 0);
        assert_true(asprintf(&whole, "{\"%s\": %s, %s", values[i].key, values[i].value,
                             text + 1) > 0);
        r = model_config_parse(&c, whole, strlen(whole), &e);
        if ((r == 0) != (values[i].code == ERR_NONE) ||
            (r == -1 && e.code != values[i].code) ||
            (r == -1 && strstr(e.text, values[i].says) == NULL))
            fail_msg("%s = %s: ret %d, %s: %s", values[i].key, values[i].value, r,
                     err_name(e.code), e.text);
        free(whole);
        free(text);
        json_decref(root);
    }
}

static void
test_ratios(void **state)
{
    static const struct {
        int at, value;
        bool good;
    } cases[] = {{2, 0, true},  {2, 4, true},   {2, 8, true},    {2, 16, true},
                 {2, 64, true}, {2, 128, true}, {2, 256, false}, {2, 1, false},
                 {2, 2, false}, {2, 12, false}, {2, -4, false},  {43, 4, false},
                 {43, 0, true}, {0, 128, true}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *root = published("flash");
        struct model_config c;
        struct err e;
        int r;

        json_array_set_new(json_object_get(root, "compress_ratios"), (size_t)cases[i].at,
                           json_integer(cases[i].value));
        r = parse(root, &c, &e);
        if ((r == 0) != cases[i].good ||
            (r == -1 && strstr(e.text, "compress_ratios[") == NULL))
            fail_msg("compress_ratios[%d] = %d: %s", cases[i].at, cases[i].value, e.text);
        json_decref(root);
    }
}

static void
test_what_is_no_object(void **state)
{
    static const char *const texts[] = {
        "",         "   ",     "[]", "7", "null", "{", "{\"a\":1}x", "{\"a\":1,\"a\":2}",
        "\xff\xfe", "[[[[[[[["};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct model_config c;
        struct err e = {0};

        assert_int_equal(model_config_parse(&c, texts[i], strlen(texts[i]), &e), -1);
        assert_true(e.code == ERR_DAMAGED || e.code == ERR_MODEL_MISMATCH);
        assert_true(e.text[0] != '\0');
    }
}

static char *
text_of(const struct model_config *c)
{
    struct buf b;
    struct err e;

    buf_init(&b, 1 << 16);
    assert_int_equal(model_config_text(c, &b, &e), 0);
    return buf_take(&b, &e);
}

/* The text goes into the fingerprint: a change of any number must change it. */
static void
test_text_has_every_number(void **state)
{
    json_t *root = published("flash"), *v;
    struct model_config c;
    struct err e;
    const char *key;
    char *was;
    int n = 0;

    (void)state;
    assert_int_equal(parse(root, &c, &e), 0);
    was = text_of(&c);
    json_object_foreach(root, key, v)
    {
        json_t *changed = json_deep_copy(root);
        struct model_config d;

        if (json_is_integer(v))
            json_object_set_new(changed, key, json_integer(json_integer_value(v) * 2));
        else if (json_is_real(v))
            json_object_set_new(changed, key, json_real(json_real_value(v) * 1.5));
        if (!may_be_absent(key) && json_is_number(v) && json_number_value(v) != 0 &&
            parse(changed, &d, &e) == 0) {
            char *is = text_of(&d);

            if (strcmp(was, is) == 0)
                fail_msg("%s is not in the text", key);
            free(is);
            n++;
        }
        json_decref(changed);
    }
    assert_true(n >= 15); /* most numbers can be doubled on their own */
    free(was);
    json_decref(root);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_files),
        cmocka_unit_test(test_each_key),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_ratios),
        cmocka_unit_test(test_what_is_no_object),
        cmocka_unit_test(test_text_has_every_number),
    };

    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
