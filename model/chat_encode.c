/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns to the text that the model was trained on (spec 12.2 and 12.4). Written in the order of
 * that text: each function puts down one part of it. What a turn is, chat_turns.c has settled.
 * No state.
 */
#include <config.h>

#include <string.h>

#include "base/err.h"
#include "model/chat_turns.h"
#include "model/chat_write.h"

static const char effort_absolute[] =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
    "edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate "
    "step, considered alternative, and rejected hypothesis to ensure absolutely no assumption "
    "is left unchecked.\n\n";

static const char effort_beyond[] =
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
    "exhaustively decompose the problem into its most fundamental components, trace every "
    "causal chain to its root, and resolve the underlying cause rather than any surface "
    "symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple "
    "angles and are certain that no assumption remains unchecked and no error remains "
    "undiscovered.\n\n";

static const char response_format[] =
    "## Response Format:\n\n"
    "You MUST strictly adhere to the following schema to reply:\n";

/* [release][effort], spec 12.4; NULL: that release has no such effort */
static const char *const effort_prefix[2][4] = {
    [CHAT_PREVIEW] = {[CHAT_EFFORT_NONE] = "",
                      [CHAT_EFFORT_LOW] = NULL,
                      [CHAT_EFFORT_HIGH] = "",
                      [CHAT_EFFORT_MAX] = effort_absolute},
    [CHAT_0731] = {[CHAT_EFFORT_NONE] = "",
                   [CHAT_EFFORT_LOW] = "",
                   [CHAT_EFFORT_HIGH] = effort_absolute,
                   [CHAT_EFFORT_MAX] = effort_beyond},
};

/* A string, or text parts two lines apart; what is not text is named, not shown. */
static void
put_content(struct chat_writer *w, const json_t *content)
{
    if (json_is_string(content))
        put_plain(w, json_string_value(content), json_string_length(content));
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");

        put_format(w, i > 0 ? "\n\n" : "");
        if (strcmp(type, "text") == 0) {
            put_plain(w, json_string_value(text), json_string_length(text));
        } else {
            put_format(w, "[Unsupported ");
            put_plain(w, type, strlen(type));
            put_format(w, "]");
        }
    }
}

static void
put_instructions(struct chat_writer *w, const struct chat_turn *turn)
{
    json_t *format = json_object_get(turn->json, "response_format");

    put_content(w, json_object_get(turn->json, "content"));
    if (turn->tools != NULL) {
        put_format(w, "\n\n");
        put_tools(w, turn->tools);
    }
    if (json_object_size(format) > 0) {
        put_format(w, "\n\n");
        put_format(w, response_format);
        put_json(w, format);
    }
}

static void
put_user(struct chat_writer *w, const struct chat_turns *t, const struct chat_turn *turn)
{
    const struct chat_block *b = t->blocks + turn->first_block;

    put_format(w, CHAT_USER);
    for (size_t i = 0; i < turn->n_blocks; i++) {
        put_format(w, i > 0 ? "\n\n" : "");
        put_format(w, b[i].tool_result ? "<tool_result>" : "");
        put_content(w, b[i].content);
        put_format(w, b[i].tool_result ? "</tool_result>" : "");
    }
}

/* Whether turn i belongs to the exchange that is still going on. */
static bool
is_current(const struct chat_turns *t, size_t i)
{
    return !t->drop || t->last_user == t->n || i >= t->last_user;
}

static void
put_assistant(struct chat_writer *w, const struct chat_turns *t, size_t i, bool thinking)
{
    const struct chat_turn *turn = &t->turns[i];
    const bool answers_task = i > 0 && t->turns[i - 1].task != NULL;
    const json_t *wo_eos = json_object_get(turn->json, "wo_eos");

    if (thinking && !answers_task && is_current(t, i)) {
        put_content(w, json_object_get(turn->json, "reasoning_content"));
        put_format(w, CHAT_THINK_END);
    }
    put_content(w, json_object_get(turn->json, "content"));
    put_calls(w, json_object_get(turn->json, "tool_calls"), turn->message);
    put_format(w, json_is_true(wo_eos) ? "" : CHAT_EOS);
}

/* What makes the model answer, behind a turn that it is to answer. */
static void
put_transition(struct chat_writer *w, const struct chat_turns *t, size_t i, bool thinking)
{
    const struct chat_turn *turn = &t->turns[i];
    const bool asks = turn->role == ROLE_USER || turn->role == ROLE_DEVELOPER;

    if (i + 1 < t->n && t->turns[i + 1].role != ROLE_ASSISTANT &&
        t->turns[i + 1].role != ROLE_REMINDER)
        return;
    if (turn->task != NULL) {
        if (strcmp(turn->task, "action") == 0) {
            put_format(w, CHAT_ASSISTANT);
            put_format(w, thinking ? CHAT_THINK : CHAT_THINK_END);
        }
        put_format(w, chat_task_token(turn->task));
    } else if (asks) {
        put_format(w, CHAT_ASSISTANT);
        put_format(w, thinking && is_current(t, i) ? CHAT_THINK : CHAT_THINK_END);
    }
}

static void
put_turn(struct chat_writer *w, const struct chat_turns *t, size_t i, bool thinking)
{
    const struct chat_turn *turn = &t->turns[i];

    switch (turn->role) {
    case ROLE_SYSTEM: put_instructions(w, turn); break;
    case ROLE_DEVELOPER:
        put_format(w, CHAT_USER);
        put_instructions(w, turn);
        break;
    case ROLE_USER: put_user(w, t, turn); break;
    case ROLE_REMINDER:
        put_format(w, CHAT_REMINDER);
        put_content(w, json_object_get(turn->json, "content"));
        break;
    case ROLE_ASSISTANT: put_assistant(w, t, i, thinking); break;
    case ROLE_TOOL:
    case N_ROLES: break; /* merged into user turns */
    }
    put_transition(w, t, i, thinking);
}

int
chat_encode(const char *json, size_t len, const struct chat_opts *o, struct chat_text *out,
            struct err *e)
{
    const char *prefix = effort_prefix[o->release][o->effort];
    struct chat_writer w = {.out = out, .e = e};
    struct chat_turns t;

    out->text.len = out->pieces.len = 0;
    if (prefix == NULL)
        return err_set(e, ERR_INVALID, 0,
                       "reasoning effort \"low\" is unknown to the preview release");
    if (chat_turns_read(&t, json, len, o, e) == -1)
        return -1;
    if (!o->in_context) {
        put_format(&w, CHAT_BOS);
        put_format(&w, o->thinking ? prefix : "");
    }
    for (size_t i = 0; i < t.n && !w.failed; i++)
        put_turn(&w, &t, i, o->thinking);
    chat_turns_done(&t);
    if (!w.failed)
        return 0;
    out->text.len = out->pieces.len = 0;
    return -1;
}
