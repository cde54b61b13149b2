/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages as clients send them to turns as the format knows them (spec 12.1): tool results
 * become blocks of a user turn, neighbouring user messages one turn, results go into the order
 * of their calls, and old reasoning is dropped. Everything in the JSON is checked here, so
 * that rendering cannot meet a surprise; a key that would have no effect is refused, because
 * whoever wrote it expected one. No state.
 */
#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "model/chat.h"
#include "model/chat_turns.h"

static const char *const role_names[N_ROLES] = {
    [ROLE_SYSTEM] = "system", [ROLE_DEVELOPER] = "developer",
    [ROLE_USER] = "user",     [ROLE_ASSISTANT] = "assistant",
    [ROLE_TOOL] = "tool",     [ROLE_REMINDER] = "latest_reminder",
};

static const struct {
    const char *name, *token;
} tasks[] = {
    {"action", "<｜action｜>"}, {"query", "<｜query｜>"}, {"authority", "<｜authority｜>"},
    {"domain", "<｜domain｜>"}, {"title", "<｜title｜>"}, {"read_url", "<｜read_url｜>"},
};

enum {
    S = 1 << ROLE_SYSTEM,
    D = 1 << ROLE_DEVELOPER,
    U = 1 << ROLE_USER,
    A = 1 << ROLE_ASSISTANT,
    T = 1 << ROLE_TOOL,
    R = 1 << ROLE_REMINDER,
    ANY = S | D | U | A | T | R
};

/* Who may have which key. mask and name do nothing here, but clients keep them with messages:
 * mask marks training data, name repeats what tool_call_id says. */
static const struct {
    const char *name;
    unsigned roles;
} keys[] = {
    {"role", ANY},
    {"content", ANY},
    {"mask", ANY},
    {"tools", S | D},
    {"response_format", S | D},
    {"reasoning_content", A},
    {"tool_calls", A},
    {"tool_call_id", T},
    {"name", T},
    {"task", ANY & ~(unsigned)T},
    {"wo_eos", U | A},
};

const char *
chat_task_token(const char *task)
{
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++) {
        if (strcmp(tasks[i].name, task) == 0)
            return tasks[i].token;
    }
    return NULL;
}

/* The value of a key, NULL if it is missing or null. */
static json_t *
get(const json_t *o, const char *key)
{
    json_t *v = json_object_get(o, key);

    return json_is_null(v) ? NULL : v;
}

/* A string without NUL bytes, or NULL. */
static const char *
get_name(const json_t *o, const char *key)
{
    const json_t *v = get(o, key);

    if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
        return NULL;
    return json_string_value(v);
}

static int
check_keys(json_t *m, size_t i, enum chat_role role, struct err *e)
{
    const char *key;
    json_t *v;

    json_object_foreach(m, key, v)
    {
        size_t k = 0;

        if (json_is_null(v))
            continue;
        while (k < sizeof keys / sizeof *keys && strcmp(keys[k].name, key) != 0)
            k++;
        if (k == sizeof keys / sizeof *keys)
            return err_set(e, ERR_INVALID, 0, "message %zu: unknown key \"%.40s\"", i, key);
        if ((keys[k].roles & 1U << role) == 0)
            return err_set(e, ERR_INVALID, 0,
                           "message %zu: %s: a %s message has no such key", i, key,
                           role_names[role]);
    }
    return 0;
}

/* A string, or an array of parts; parts other than text only where the format says so. */
static int
check_content(const json_t *content, size_t i, enum chat_role role, struct err *e)
{
    const bool any_part = role == ROLE_USER || role == ROLE_TOOL;

    if (content == NULL || json_is_string(content))
        return 0;
    if (!json_is_array(content))
        return err_set(e, ERR_INVALID, 0, "message %zu: content: not a string or an array",
                       i);
    for (size_t k = 0; k < json_array_size(content); k++) {
        const json_t *part = json_array_get(content, k);
        const char *type = get_name(part, "type");

        if (type == NULL)
            return err_set(e, ERR_INVALID, 0, "message %zu: content: part %zu has no type",
                           i, k);
        if (strcmp(type, "text") == 0 && !json_is_string(get(part, "text")))
            return err_set(e, ERR_INVALID, 0, "message %zu: content: part %zu has no text",
                           i, k);
        if (strcmp(type, "text") != 0 && !any_part)
            return err_set(e, ERR_INVALID, 0, "message %zu: content: part %zu is not text",
                           i, k);
    }
    return 0;
}

static int
check_tools(const json_t *tools, size_t i, struct err *e)
{
    if (tools != NULL && !json_is_array(tools))
        return err_set(e, ERR_INVALID, 0, "message %zu: tools: not an array", i);
    for (size_t k = 0; k < json_array_size(tools); k++) {
        const json_t *tool = json_array_get(tools, k);
        const char *type = get_name(tool, "type");

        if (type != NULL && strcmp(type, "function") != 0)
            return err_set(e, ERR_INVALID, 0,
                           "message %zu: tools: tool %zu is a \"%.40s\", not a function", i,
                           k, type);
        if (!json_is_object(get(tool, "function")))
            return err_set(e, ERR_INVALID, 0,
                           "message %zu: tools: tool %zu has no function", i, k);
    }
    return 0;
}

static int
check_calls(const json_t *calls, size_t i, struct err *e)
{
    if (calls != NULL && !json_is_array(calls))
        return err_set(e, ERR_INVALID, 0, "message %zu: tool_calls: not an array", i);
    if (json_array_size(calls) > CHAT_MAX_CALLS)
        return err_set(e, ERR_INVALID, 0, "message %zu: tool_calls: %zu calls, at most %d",
                       i, json_array_size(calls), CHAT_MAX_CALLS);
    for (size_t k = 0; k < json_array_size(calls); k++) {
        const json_t *call = json_array_get(calls, k);
        const json_t *function = get(call, "function");
        const json_t *arguments = get(function, "arguments");

        if (get(call, "id") != NULL && get_name(call, "id") == NULL)
            return err_set(e, ERR_INVALID, 0, "message %zu: tool_calls: call %zu: bad id",
                           i, k);
        if (get_name(function, "name") == NULL)
            return err_set(e, ERR_INVALID, 0,
                           "message %zu: tool_calls: call %zu has no function.name", i, k);
        if (!json_is_string(arguments) && !json_is_object(arguments))
            return err_set(
                e, ERR_INVALID, 0,
                "message %zu: tool_calls: call %zu: function.arguments is neither "
                "a string nor an object",
                i, k);
    }
    return 0;
}

/* Everything about one message but what depends on its neighbours. */
static int
check_message(json_t *m, size_t i, enum chat_role *role, struct err *e)
{
    const char *name = get_name(m, "role"), *task = get_name(m, "task");
    const json_t *format = get(m, "response_format"), *content = get(m, "content");
    const json_t *reasoning = get(m, "reasoning_content"), *wo_eos = get(m, "wo_eos");

    if (!json_is_object(m))
        return err_set(e, ERR_INVALID, 0, "message %zu: not an object", i);
    if (name == NULL)
        return err_set(e, ERR_INVALID, 0, "message %zu: role: missing", i);
    for (*role = 0; *role < N_ROLES && strcmp(role_names[*role], name) != 0;)
        (*role)++;
    if (*role == N_ROLES)
        return err_set(e, ERR_INVALID, 0, "message %zu: role: unknown \"%.40s\"", i, name);
    if (check_keys(m, i, *role, e) == -1 || check_content(content, i, *role, e) == -1 ||
        check_tools(get(m, "tools"), i, e) == -1 ||
        check_calls(get(m, "tool_calls"), i, e) == -1)
        return -1;
    if (content == NULL && (*role == ROLE_DEVELOPER || *role == ROLE_REMINDER))
        return err_set(e, ERR_INVALID, 0, "message %zu: content: missing", i);
    if (*role == ROLE_DEVELOPER && json_is_string(content) &&
        json_string_length(content) == 0)
        return err_set(e, ERR_INVALID, 0, "message %zu: content: empty", i);
    if (format != NULL && !json_is_object(format))
        return err_set(e, ERR_INVALID, 0, "message %zu: response_format: not an object", i);
    if (reasoning != NULL && !json_is_string(reasoning))
        return err_set(e, ERR_INVALID, 0, "message %zu: reasoning_content: not a string",
                       i);
    if (wo_eos != NULL && !json_is_boolean(wo_eos))
        return err_set(e, ERR_INVALID, 0, "message %zu: wo_eos: not true or false", i);
    if (get(m, "tool_call_id") != NULL && get_name(m, "tool_call_id") == NULL)
        return err_set(e, ERR_INVALID, 0, "message %zu: tool_call_id: not a name", i);
    if (get(m, "task") != NULL && (task == NULL || chat_task_token(task) == NULL))
        return err_set(e, ERR_INVALID, 0, "message %zu: task: unknown", i);
    return 0;
}

/* Spec 12.1, first step. */
static int
merge(struct chat_turns *t, json_t *m, size_t i, enum chat_role role, struct err *e)
{
    const bool to_user = role == ROLE_USER || role == ROLE_TOOL;
    struct chat_turn *last = t->n > 0 ? &t->turns[t->n - 1] : NULL;
    const char *id = get_name(m, "tool_call_id");

    if (!to_user || last == NULL || last->role != ROLE_USER ||
        (role == ROLE_USER && last->task != NULL)) {
        json_t *tools = get(m, "tools");

        last = &t->turns[t->n++];
        *last = (struct chat_turn){
            .role = to_user ? ROLE_USER : role,
            .message = i,
            .json = m,
            .tools = json_array_size(tools) > 0 ? tools : NULL,
            .task = get_name(m, "task"),
            .first_block = t->n_blocks,
        };
    } else if (get(m, "task") != NULL) {
        /* The reference forgets it and asks for an ordinary answer. */
        return err_set(
            e, ERR_INVALID, 0,
            "message %zu: task: a user message that follows another one or a tool "
            "result cannot have one",
            i);
    }
    if (to_user) {
        t->blocks[t->n_blocks++] = (struct chat_block){.tool_result = role == ROLE_TOOL,
                                                       .content = get(m, "content"),
                                                       .id = id != NULL ? id : ""};
        last->n_blocks++;
    }
    return 0;
}

static int
by_rank(const void *a, const void *b)
{
    const struct chat_block *x = a, *y = b;

    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* The index of the call with this id, 0 if there is none; of several, the last. */
static size_t
call_rank(const json_t *calls, const char *id)
{
    for (size_t k = json_array_size(calls); k-- > 0 && *id != '\0';) {
        const char *name = get_name(json_array_get(calls, k), "id");

        if (name != NULL && strcmp(name, id) == 0)
            return k;
    }
    return 0;
}

/* Spec 12.1, second step: text blocks keep their places. `room`: as many as t->blocks. */
static void
sort_results(struct chat_turns *t, struct chat_block *room)
{
    const json_t *calls = NULL;

    for (size_t i = 0; i < t->n; i++) {
        const struct chat_turn *turn = &t->turns[i];
        struct chat_block *b = t->blocks + turn->first_block;
        size_t n = 0;

        if (turn->role == ROLE_ASSISTANT &&
            json_array_size(get(turn->json, "tool_calls")) > 0)
            calls = get(turn->json, "tool_calls");
        if (turn->role != ROLE_USER || calls == NULL)
            continue;
        for (size_t k = 0; k < turn->n_blocks; k++) {
            if (!b[k].tool_result)
                continue;
            b[k].rank = call_rank(calls, b[k].id);
            b[k].seq = k;
            room[n++] = b[k];
        }
        qsort(room, n, sizeof *room, by_rank);
        n = 0;
        for (size_t k = 0; k < turn->n_blocks; k++) {
            if (b[k].tool_result)
                b[k] = room[n++];
        }
    }
}

static size_t
find_last_user(const struct chat_turns *t)
{
    for (size_t i = t->n; i-- > 0;) {
        if (t->turns[i].role == ROLE_USER || t->turns[i].role == ROLE_DEVELOPER)
            return i;
    }
    return t->n;
}

/* Spec 12.1, third step. Old reasoning stays in the JSON; rendering looks at t->drop. */
static void
drop(struct chat_turns *t, const struct chat_opts *o)
{
    size_t n = 0;

    t->drop = !o->keep_reasoning;
    for (size_t i = 0; i < t->n; i++)
        t->drop = t->drop && t->turns[i].tools == NULL;
    t->last_user = find_last_user(t);
    if (!t->drop || !o->thinking || t->last_user == t->n)
        return;
    for (size_t i = 0; i < t->n; i++) {
        if (i >= t->last_user || t->turns[i].role != ROLE_DEVELOPER)
            t->turns[n++] = t->turns[i];
    }
    t->n = n;
    t->last_user = find_last_user(t);
}

/* The array of messages; the document's tools go to a first turn that can have them. */
static json_t *
find_messages(json_t *root, json_t **tools, struct err *e)
{
    json_t *messages = root, *v;
    const char *key;

    *tools = NULL;
    if (json_is_object(root)) {
        json_object_foreach(root, key, v)
        {
            if (strcmp(key, "messages") != 0 && strcmp(key, "tools") != 0) {
                err_set(e, ERR_INVALID, 0, "unknown key \"%.40s\" beside messages", key);
                return NULL;
            }
        }
        messages = json_object_get(root, "messages");
        *tools = get(root, "tools");
        if (check_tools(*tools, 0, e) == -1)
            return NULL;
        if (json_array_size(*tools) == 0)
            *tools = NULL;
    }
    if (!json_is_array(messages) || json_array_size(messages) == 0) {
        err_set(e, ERR_INVALID, 0, "messages: not an array of at least one message");
        return NULL;
    }
    if (json_array_size(messages) > CHAT_MAX_MESSAGES) {
        err_set(e, ERR_INVALID, 0, "messages: %zu, at most %d are allowed",
                json_array_size(messages), CHAT_MAX_MESSAGES);
        return NULL;
    }
    return messages;
}

static int
place_tools(struct chat_turns *t, json_t *tools, const json_t *first, struct err *e)
{
    const char *role = get_name(first, "role");

    if (tools == NULL)
        return 0;
    if (get(first, "tools") != NULL)
        return err_set(e, ERR_INVALID, 0,
                       "message 0: tools: given beside messages as well");
    if (role != NULL && strcmp(role, role_names[ROLE_SYSTEM]) != 0 &&
        strcmp(role, role_names[ROLE_DEVELOPER]) != 0)
        t->turns[t->n++] = (struct chat_turn){.role = ROLE_SYSTEM, .tools = tools};
    return 0;
}

static int
read_messages(struct chat_turns *t, json_t *messages, json_t *tools, struct err *e)
{
    const size_t n = json_array_size(messages);

    if (place_tools(t, tools, json_array_get(messages, 0), e) == -1)
        return -1;
    for (size_t i = 0; i < n; i++) {
        json_t *m = json_array_get(messages, i);
        enum chat_role role = ROLE_SYSTEM;

        if (check_message(m, i, &role, e) == -1 || merge(t, m, i, role, e) == -1)
            return -1;
        if (i == 0 && t->n == 1 && tools != NULL)
            t->turns[0].tools = tools;
    }
    return 0;
}

int
chat_turns_read(struct chat_turns *t, const char *json, size_t len,
                const struct chat_opts *o, struct err *e)
{
    struct chat_block *room = NULL;
    json_t *messages, *tools;
    bool syntax;
    size_t n;

    *t = (struct chat_turns){0};
    if (len > CHAT_MAX_JSON)
        return err_set(e, ERR_INVALID, 0, "messages: %zu bytes of JSON, at most %d", len,
                       CHAT_MAX_JSON);
    t->root = chat_json(json, len, JSON_REJECT_DUPLICATES, &syntax, e);
    if (t->root == NULL)
        return -1;
    messages = find_messages(t->root, &tools, e);
    if (messages == NULL)
        goto fail;
    n = json_array_size(messages);
    t->turns = calloc(n + 1, sizeof *t->turns);
    t->blocks = calloc(n, sizeof *t->blocks);
    room = calloc(n, sizeof *room);
    if (t->turns == NULL || t->blocks == NULL || room == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for %zu messages", n);
        goto fail;
    }
    if (read_messages(t, messages, tools, e) == -1)
        goto fail;
    sort_results(t, room);
    free(room);
    drop(t, o);
    return 0;

fail:
    free(room);
    chat_turns_done(t);
    return -1;
}

void
chat_turns_done(struct chat_turns *t)
{
    json_decref(t->root);
    free(t->turns);
    free(t->blocks);
    *t = (struct chat_turns){0};
}
