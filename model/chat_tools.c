/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tools in the prompt (spec 12.2 and 12.3): the block that describes them, and calls in DSML.
 * The wording is a constant of the format: the model was trained on these bytes.
 */
#include <config.h>

#include <string.h>

#include "base/err.h"
#include "model/chat_turns.h"
#include "model/chat_write.h"

static const char tools_before[] =
    "## Tools\n"
    "\n"
    "You have access to a set of tools to help answer the user's question. You can invoke "
    "tools by writing a \"<" CHAT_DSML "tool_calls>\" block like the following:\n"
    "\n"
    "<" CHAT_DSML "tool_calls>\n"
    "<" CHAT_DSML "invoke name=\"$TOOL_NAME\">\n"
    "<" CHAT_DSML
    "parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE"
    "</" CHAT_DSML "parameter>\n"
    "...\n"
    "</" CHAT_DSML "invoke>\n"
    "<" CHAT_DSML "invoke name=\"$TOOL_NAME2\">\n"
    "...\n"
    "</" CHAT_DSML "invoke>\n"
    "</" CHAT_DSML "tool_calls>\n"
    "\n"
    "String parameters should be specified as is and set `string=\"true\"`. For all other "
    "types (numbers, booleans, arrays, objects), pass the value in JSON format and set "
    "`string=\"false\"`.\n"
    "\n"
    "If thinking_mode is enabled (triggered by " CHAT_THINK
    "), you MUST output your complete "
    "reasoning inside " CHAT_THINK "..." CHAT_THINK_END " BEFORE any tool calls or final "
    "response.\n"
    "\n"
    "Otherwise, output directly after " CHAT_THINK_END
    " with tool calls or final response.\n"
    "\n"
    "### Available Tool Schemas\n"
    "\n";

static const char tools_after[] =
    "\n\nYou MUST strictly follow the above defined tool name "
    "and parameter schemas to invoke tool calls.\n";

void
put_tools(struct chat_writer *w, const json_t *tools)
{
    put_format(w, tools_before);
    for (size_t i = 0; i < json_array_size(tools); i++) {
        put_format(w, i > 0 ? "\n" : "");
        put_json(w, json_object_get(json_array_get(tools, i), "function"));
    }
    put_format(w, tools_after);
}

static void
put_parameter(struct chat_writer *w, const char *key, json_t *v)
{
    put_format(w, "<" CHAT_DSML "parameter name=\"");
    put_plain(w, key, strlen(key));
    if (json_is_string(v)) {
        put_format(w, "\" string=\"true\">");
        put_plain(w, json_string_value(v), json_string_length(v));
    } else {
        put_format(w, "\" string=\"false\">");
        put_json(w, v);
    }
    put_format(w, "</" CHAT_DSML "parameter>");
}

/* Arguments come as JSON in a string; what is no object becomes a parameter of its own. */
static void
put_arguments(struct chat_writer *w, json_t *arguments, size_t message, size_t call)
{
    json_t *object = NULL, *v;
    const char *key, *between = "";

    if (w->failed)
        return;
    if (json_is_object(arguments)) {
        object = json_incref(arguments);
    } else {
        bool syntax;

        object = chat_json(json_string_value(arguments), json_string_length(arguments),
                           JSON_DECODE_ANY, &syntax, w->e);
        if (object == NULL && !syntax) {
            err_prefix(w->e,
                       "message %zu: tool_calls: call %zu: function.arguments: ", message,
                       call);
            w->failed = true;
            return;
        }
    }
    if (json_is_object(object)) {
        json_object_foreach(object, key, v)
        {
            put_format(w, between);
            put_parameter(w, key, v);
            between = "\n";
        }
    } else {
        put_parameter(w, "arguments", arguments);
    }
    json_decref(object);
}

void
put_calls(struct chat_writer *w, const json_t *calls, size_t message)
{
    if (json_array_size(calls) == 0)
        return;
    put_format(w, "\n\n<" CHAT_DSML "tool_calls>\n");
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *f = json_object_get(json_array_get(calls, i), "function");
        const json_t *name = json_object_get(f, "name");

        put_format(w, "<" CHAT_DSML "invoke name=\"");
        put_plain(w, json_string_value(name), json_string_length(name));
        put_format(w, "\">\n");
        put_arguments(w, json_object_get(f, "arguments"), message, i);
        put_format(w, "\n</" CHAT_DSML "invoke>\n");
    }
    put_format(w, "</" CHAT_DSML "tool_calls>");
}
