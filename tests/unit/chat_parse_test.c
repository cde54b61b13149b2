/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completions taken apart: what is well formed comes back as it was encoded, what is not loses
 * nothing. The check for loss is tried on damaged results as well, which it must notice.
 */
#include "config.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/chat.h"
#include "model/json_py.h"
#include "tests/chat_loss.h"
#include "tests/test.h"

#define EOS "<｜end▁of▁sentence｜>"
#define D   "｜DSML｜"
#define CALL_F                                                                \
    "<" D "tool_calls>\n<" D "invoke name=\"f\">\n"                           \
    "<" D "parameter name=\"n\" string=\"false\">5</" D "parameter>\n"        \
    "<" D "parameter name=\"s\" string=\"true\">a \"b\"\n</" D "parameter>\n" \
    "</" D "invoke>\n"
#define CALLS  CALL_F "</" D "tool_calls>"
#define ARGS_F "{\"n\": 5, \"s\": \"a \\\"b\\\"\\n\"}"

static uint64_t rng_state;

static uint32_t
below(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005 + 1442695040888963407;
    return (uint32_t)(rng_state >> 33) % n;
}

static void
parse(const char *text, size_t len, bool thinking, struct chat_message *m)
{
    struct err e = {0};

    if (chat_parse(text, len, thinking, m, &e) == -1)
        fail_msg("%s", e.text);
    if (!chat_nothing_lost(text, len, m))
        fail_msg("lost something of: %.*s\ncontent: %s", (int)len, text, m->content);
}

static void
test_table(void **state)
{
    static const struct {
        const char *text;
        bool thinking;
        const char *reasoning, *content, *arguments; /* arguments: of a call of f */
        const char *note;
        bool complete;
    } cases[] = {
        {"Hi" EOS, false, NULL, "Hi", NULL, "", true},
        {"", false, NULL, "", NULL, "", false},
        {"", true, "", "", NULL, "no end", false},
        {"r</think>c" EOS, true, "r", "c", NULL, "", true},
        {"</think>c", true, "", "c", NULL, "", false},
        {"r and r" EOS, true, "r and r", "", NULL, "no end", true},
        {"r</think>c\n\n" CALLS EOS, true, "r", "c", ARGS_F, "", true},
        {"r</think>\n\n" CALLS, true, "r", "", ARGS_F, "", true},
        {"c\n\n" CALLS, false, NULL, "c", ARGS_F, "", true},
        {"c" CALLS, false, NULL, "c", ARGS_F, "", true},
        {"c\n\n\n" CALLS, false, NULL, "c\n", ARGS_F, "", true},
        {"r\n\n" CALLS EOS, true, "r\n\n", "", ARGS_F, "no end", true},
        {"c\n\n" CALL_F, false, NULL, "c", ARGS_F, "not closed", false},
        {"c\n\n" CALL_F EOS, false, NULL, "c", ARGS_F, "not closed", true},
        {"c\n\n" CALLS "more" EOS, false, NULL, "cmore", ARGS_F, "behind", true},
        {"c <" D "tool_calls> is how\n\n" CALLS, false, NULL, "c <" D "tool_calls> is how",
         ARGS_F, "control", true},
        {"a</think>b", false, NULL, "a</think>b", NULL, "control", false},
        {"c\n\n<" D "tool_calls>\n<" D "invoke name=\"f\">\n<" D "param", false, NULL,
         "c\n\n<" D "tool_calls>\n<" D "invoke name=\"f\">\n<" D "param", NULL,
         "not understood", false},
        {"<" D "tool_calls></" D "tool_calls>", false, NULL,
         "<" D "tool_calls></" D "tool_calls>", NULL, "not understood", false},
        {"<" D "tool_calls><" D "invoke name=\"f\"></" D "invoke></" D "tool_calls>", false,
         NULL, "", "{}", "", true},
        {"<" D "tool_calls>  <" D "invoke   name=\"f\" > <" D "parameter\nname=\"a\" "
         "string=\"false\" >{\"x\": [1,2]} </" D "parameter></" D "invoke></" D
         "tool_calls>",
         false, NULL, "", "{\"a\": {\"x\": [1,2]} }", "", true},
        {"<" D "tool_calls><" D "invoke name=\"f\"><" D "parameter name=\"a\" "
         "string=\"false\">nope}</" D "parameter></" D "invoke></" D "tool_calls>",
         false, NULL, "", "{\"a\": \"nope}\"}", "taken as a string", true},
        /* Half JSON, and a number that ends our parser, must not become members. */
        {"<" D "tool_calls><" D "invoke name=\"f\"><" D "parameter name=\"a\" "
         "string=\"false\">1e999, \"b\": 1</" D "parameter></" D "invoke></" D
         "tool_calls>",
         false, NULL, "", "{\"a\": \"1e999, \\\"b\\\": 1\"}", "taken as a string", true},
        {"<" D "tool_calls><" D "invoke name=\"f\"><" D "parameter name=\"a\" "
         "string=\"true\">1</" D "parameter><" D
         "parameter name=\"a\" string=\"true\">2</" D "parameter></" D "invoke></" D
         "tool_calls>",
         false, NULL,
         "<" D "tool_calls><" D "invoke name=\"f\"><" D "parameter name=\"a\" "
         "string=\"true\">1</" D "parameter><" D
         "parameter name=\"a\" string=\"true\">2</" D "parameter></" D "invoke></" D
         "tool_calls>",
         NULL, "not understood", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct chat_message m;

        parse(cases[i].text, strlen(cases[i].text), cases[i].thinking, &m);
        assert_int_equal(m.reasoning != NULL, cases[i].reasoning != NULL);
        if (m.reasoning != NULL)
            assert_string_equal(m.reasoning, cases[i].reasoning);
        assert_string_equal(m.content, cases[i].content);
        assert_int_equal(m.n_calls, cases[i].arguments != NULL);
        if (m.n_calls > 0) {
            assert_string_equal(m.calls[0].name, "f");
            assert_string_equal(m.calls[0].arguments, cases[i].arguments);
        }
        if ((cases[i].note[0] == '\0') != (m.note[0] == '\0') ||
            strstr(m.note, cases[i].note) == NULL)
            fail_msg("case %zu: note \"%s\"", i, m.note);
        assert_int_equal(m.complete, cases[i].complete);
        chat_message_done(&m);
    }
}

/* Random text without control tokens, as a JSON string. A key has no ">": behind a quote that
 * would end the name, and nothing in the format escapes it. */
static json_t *
random_text(bool key)
{
    static const char *const bits[] = {"a",  "{", "\"", "\\", "<",       "é",         "\t",
                                       "中", "/", "=",  "😀",  "\" a=\"", "string=\"", ">"};
    char s[128] = "k";

    for (uint32_t n = below(8); n > 0; n--)
        strcat(s, bits[below(key ? 13 : 14)]);
    if (!key && below(3) == 0)
        strcat(s, "\n\nx");
    if (key)
        snprintf(s + strlen(s), 8, "%u", below(1000));
    return json_string(s);
}

static json_t *
random_value(int depth)
{
    json_t *v;

    switch (below(depth > 2 ? 5 : 7)) {
    case 0: return json_integer((json_int_t)below(1000) - 500);
    case 1: return json_real((double)below(100000) / 64);
    case 2: return json_boolean(below(2));
    case 3: return json_null();
    case 4: return random_text(false);
    case 5:
        v = json_array();
        for (uint32_t n = below(4); n > 0; n--)
            json_array_append_new(v, random_value(depth + 1));
        return v;
    default:
        v = json_object();
        for (uint32_t n = below(4); n > 0; n--) {
            json_t *key = random_text(true);

            json_object_set_new(v, json_string_value(key), random_value(depth + 1));
            json_decref(key);
        }
        return v;
    }
}

static json_t *
random_object(void)
{
    json_t *v;

    for (v = random_value(0); !json_is_object(v); v = random_value(0))
        json_decref(v);
    return v;
}

/* The text of one assistant message, as a model would have written it; a string to free(). */
static char *
encode_answer(const json_t *message, bool thinking)
{
    const struct chat_opts o = {.thinking = thinking, .in_context = true};
    json_t *list = json_pack("[{ss},O]", "role", "system", message);
    char *json = json_dumps(list, 0), *s;
    struct chat_text t;
    struct err e = {0};

    chat_text_init(&t, 1 << 20);
    if (chat_encode(json, strlen(json), &o, &t, &e) == -1)
        fail_msg("%s: %s", json, e.text);
    s = buf_take(&t.text, &e);
    chat_text_done(&t);
    free(json);
    json_decref(list);
    return s;
}

static json_t *
random_message(bool thinking, size_t n_calls)
{
    json_t *m = json_pack("{ss,so}", "role", "assistant", "content", random_text(false));
    json_t *calls = json_array();

    if (thinking)
        json_object_set_new(m, "reasoning_content", random_text(false));
    for (size_t i = 0; i < n_calls; i++)
        json_array_append_new(calls,
                              json_pack("{s{so,so}}", "function", "name", random_text(true),
                                        "arguments", random_object()));
    json_object_set_new(m, "tool_calls", calls);
    return m;
}

static void
check_same(const json_t *want, const struct chat_message *m)
{
    const json_t *calls = json_object_get(want, "tool_calls");
    const json_t *reasoning = json_object_get(want, "reasoning_content");

    assert_string_equal(m->content, json_string_value(json_object_get(want, "content")));
    assert_int_equal(m->reasoning != NULL, reasoning != NULL);
    if (reasoning != NULL)
        assert_string_equal(m->reasoning, json_string_value(reasoning));
    assert_int_equal(m->n_calls, json_array_size(calls));
    for (size_t i = 0; i < m->n_calls; i++) {
        const json_t *f = json_object_get(json_array_get(calls, i), "function");
        struct err e = {0};
        struct buf b;
        char *s;

        buf_init(&b, 1 << 20);
        assert_int_equal(json_py_dump(json_object_get(f, "arguments"), &b, &e), 0);
        s = buf_take(&b, &e);
        assert_string_equal(m->calls[i].name,
                            json_string_value(json_object_get(f, "name")));
        assert_string_equal(m->calls[i].arguments, s);
        free(s);
    }
}

static void
test_round_trip(void **state)
{
    (void)state;
    rng_state = 1;
    for (int i = 0; i < 2000; i++) {
        const bool thinking = below(2);
        json_t *want = random_message(thinking, below(4)), *back;
        char *text = encode_answer(want, thinking), *again;
        struct chat_message m;
        struct err e = {0};
        struct buf json;

        parse(text, strlen(text), thinking, &m);
        assert_string_equal(m.note, "");
        assert_true(m.complete);
        check_same(want, &m);

        /* And as a message of the next prompt it is the same text again. */
        buf_init(&json, 1 << 20);
        assert_int_equal(chat_message_json(&m, &json, &e), 0);
        back = json_loadb((const char *)json.p, json.len, 0, NULL);
        assert_non_null(back);
        again = encode_answer(back, thinking);
        assert_string_equal(again, text);
        free(again);
        json_decref(back);
        buf_done(&json);
        chat_message_done(&m);
        free(text);
        json_decref(want);
    }
}

static void
test_malformed_text_loses_nothing(void **state)
{
    static const char *const bits[] = {
        "<" D "tool_calls",
        "<" D "tool_calls>\n",
        "</" D "tool_calls>",
        "<" D "invoke name=\"f\">",
        "</" D "invoke>",
        "<" D "parameter name=\"a\"",
        " string=\"true\">",
        " string=\"false\">",
        "</" D "parameter>",
        "</think>",
        "<think>",
        EOS,
        "text",
        "{\"x\": 1}",
        "\n",
        "\n\n",
        " ",
        "\"",
        CALLS,
        CALL_F,
        "\xff\xc3",
    };
    size_t calls = 0, notes = 0;

    (void)state;
    rng_state = 2;
    for (int i = 0; i < 20000; i++) {
        char text[4096] = "";
        struct chat_message m;

        for (uint32_t n = below(14); n > 0; n--)
            strcat(text, bits[below(21)]);
        parse(text, strlen(text), below(2), &m);
        calls += m.n_calls;
        notes += m.note[0] != '\0';
        chat_message_done(&m);
    }
    assert_true(calls > 1000 && notes > 1000);
}

/* One byte of a good completion changed, dropped or doubled. */
static void
test_slips_lose_nothing(void **state)
{
    static const char good[] = "think\n</think>said\n\n" CALLS EOS;
    size_t understood = 0;

    (void)state;
    for (size_t at = 0; at < sizeof good - 1; at++) {
        for (int how = 0; how < 5; how++) {
            char text[sizeof good + 1];
            size_t len = sizeof good - 1;
            struct chat_message m;

            memcpy(text, good, sizeof good);
            if (how < 3) {
                text[at] = "\0x\""[how];
            } else if (how == 3) {
                memmove(text + at, text + at + 1, len - at);
                len--;
            } else {
                memmove(text + at + 1, text + at, len - at);
                len++;
            }
            parse(text, len, true, &m);
            understood += m.n_calls;
            chat_message_done(&m);
        }
    }
    assert_true(understood > 100);
}

/* The check for loss sees each of these. */
static void
test_the_check_for_loss(void **state)
{
    static const char text[] = "think</think>said\n\n" CALLS "more" EOS;
    struct chat_message m;

    (void)state;
    parse(text, sizeof text - 1, true, &m);
    assert_int_equal(m.n_calls, 1);
    for (size_t i = 0; i < m.content_len; i++) {
        m.content[i] ^= 1;
        assert_false(chat_nothing_lost(text, sizeof text - 1, &m));
        m.content[i] ^= 1;
    }
    for (char *p = m.calls[0].arguments; *p != '\0'; p++) {
        const char was = *p;

        *p = 'Z';
        assert_false(chat_nothing_lost(text, sizeof text - 1, &m));
        *p = was;
    }
    m.calls[0].name[0] = 'g';
    assert_false(chat_nothing_lost(text, sizeof text - 1, &m));
    m.calls[0].name[0] = 'f';
    m.reasoning[0] = 'T';
    assert_false(chat_nothing_lost(text, sizeof text - 1, &m));
    m.reasoning[0] = 't';
    m.content_len--;
    assert_false(chat_nothing_lost(text, sizeof text - 1, &m));
    m.content_len++;
    m.reasoning_len--;
    assert_false(chat_nothing_lost(text, sizeof text - 1, &m));
    m.reasoning_len++;
    assert_false(chat_nothing_lost(text, sizeof text - 2, &m));
    assert_true(chat_nothing_lost(text, sizeof text - 1, &m));
    m.n_calls = 0;
    assert_false(chat_nothing_lost(text, sizeof text - 1, &m));
    m.n_calls = 1;
    chat_message_done(&m);
}

static void
test_bytes_that_are_no_text(void **state)
{
    static const char text[] = "a\0b\xff"
                               "c\xe4\xb8";
    struct chat_message m;
    struct err e = {0};
    struct buf b;
    char *s;

    (void)state;
    parse(text, sizeof text - 1, false, &m);
    assert_int_equal(m.content_len, sizeof text - 1);
    buf_init(&b, 1000);
    assert_int_equal(chat_message_json(&m, &b, &e), 0);
    s = buf_take(&b, &e);
    assert_string_equal(s, "{\"role\": \"assistant\", \"content\": \"a\\u0000b\xEF\xBF\xBD"
                           "c\xEF\xBF\xBD\"}");
    free(s);
    b.cap = 10;
    assert_int_equal(chat_message_json(&m, &b, &e), -1);
    assert_int_equal(b.len, 0);
    buf_done(&b);
    chat_message_done(&m);
}

/* A megabyte of openings takes no longer than reading it. */
static void
test_hostile_size(void **state)
{
    static const char opening[] = "<" D "tool_calls><" D "invoke name=\"\"\"\"\"";
    const size_t n = 30000, len = n * (sizeof opening - 1);
    char *text = malloc(len);
    struct chat_message m;

    (void)state;
    assert_non_null(text);
    for (size_t i = 0; i < n; i++)
        memcpy(text + i * (sizeof opening - 1), opening, sizeof opening - 1);
    parse(text, len, true, &m);
    assert_int_equal(m.n_calls, 0);
    chat_message_done(&m);
    free(text);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_malformed_text_loses_nothing),
        cmocka_unit_test(test_slips_lose_nothing),
        cmocka_unit_test(test_the_check_for_loss),
        cmocka_unit_test(test_bytes_that_are_no_text),
        cmocka_unit_test(test_hostile_size),
    };

    return cmocka_run_group_tests_name("chat_parse", tests, NULL, NULL);
}
