/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom-model tokenize: JSON lines {"t": text} in, {"ids": [...]} out, one for one, control
 * tokens in the text parsed as such. It stops at the first line that it cannot read, so what came out
 * always belongs to the first lines of what went in. One thread.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/json.h"
#include "model/tokenizer.h"
#include "tools/fathom-model.h"

enum { MAX_LINE = 16 << 20 };

/* One line without its newline. 1: got one; 0: none left; -1: error. */
static int
read_line(FILE *f, struct buf *line, struct err *e)
{
    char part[4096];
    size_t n = 0;
    int ch;

    buf_drop(line, line->len);
    while ((ch = getc_unlocked(f)) != EOF && ch != '\n') {
        part[n++] = (char)ch;
        if (n == sizeof part) {
            if (buf_add(line, part, n, e) == -1)
                return -1;
            n = 0;
        }
    }
    if (ferror(f))
        return err_set(e, ERR_INVALID, errno, "standard input: %s", strerror(errno));
    if (buf_add(line, part, n, e) == -1)
        return -1;
    return ch == '\n' || line->len > 0;
}

static int
tokenize_line(const struct tokenizer *t, const struct buf *line, struct buf *ids,
              struct err *e)
{
    static const struct json_limits max = {
        .bytes = MAX_LINE, .depth = 8, .n_values = 1 << 20, .nul = true};
    json_t *root, *text;
    int r;

    root = json_parse((const char *)line->p, line->len, &max, e);
    if (root == NULL)
        return -1;
    text = json_object_get(root, "t");
    if (json_is_string(text))
        r = tokenizer_encode(t, json_string_value(text), json_string_length(text),
                             TOKENIZE_CONTROL, ids, e);
    else
        r = err_set(e, ERR_INVALID, 0, "want an object with a string \"t\"");
    json_decref(root);
    return r;
}

static void
print_ids(const struct buf *ids)
{
    const char *between = "";

    fputs("{\"ids\": [", stdout);
    for (size_t i = 0; i < ids->len; i += sizeof(uint32_t)) {
        uint32_t id;

        memcpy(&id, ids->p + i, sizeof id);
        printf("%s%" PRIu32, between, id);
        between = ", ";
    }
    fputs("]}\n", stdout);
}

static int
each_line(const struct tokenizer *t, struct buf *line, struct buf *ids, struct err *e)
{
    for (uint64_t n = 1;; n++) {
        int r = read_line(stdin, line, e);

        if (r == 0)
            return 0;
        if (r == 1) {
            buf_drop(ids, ids->len);
            r = tokenize_line(t, line, ids, e);
        }
        if (r == -1) {
            if (e->code == ERR_DAMAGED || e->code == ERR_QUOTA)
                e->code = ERR_INVALID; /* whatever it was, the line is the caller's */
            return err_prefix(e, "line %" PRIu64, n);
        }
        print_ids(ids);
    }
}

int
model_tokenize(const char *dir, struct err *e)
{
    struct tokenizer *t = tokenizer_load(dir, e);
    struct buf line, ids;
    int r;

    if (t == NULL)
        return -1;
    buf_init(&line, MAX_LINE);
    buf_init(&ids, (size_t)MAX_LINE * sizeof(uint32_t));
    r = each_line(t, &line, &ids, e);
    buf_done(&line);
    buf_done(&ids);
    tokenizer_free(t);
    return r;
}
