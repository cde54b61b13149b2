/* SPDX-License-Identifier: Apache-2.0 */
/*
 * manifest.json of an exported session: all of its ledger but tokens and results of operations,
 * and what is needed to check the other members. Written by hand, a line an item, because the same
 * session must make the same bytes; read with jansson, because it may come from anybody. Its last
 * line is the hash of all before. Pure functions; any thread.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <xxhash.h>

#include "base/err.h"
#include "kvstore/archive_impl.h"

enum { HEX_ROOM = 65 };

static const char digest_key[] = " \"digest\": \"";

void
archive_hash(const void *p, size_t n, struct archive_hash *out)
{
    XXH128_canonical_t c;

    XXH128_canonicalFromHash(&c, XXH3_128bits(p, n));
    memcpy(out->b, c.digest, sizeof out->b);
}

static const char *
hex(const uint8_t *p, size_t n, char text[HEX_ROOM])
{
    for (size_t i = 0; i < n; i++)
        sprintf(text + 2 * i, "%02x", p[i]);
    return text;
}

static bool
unhex(const char *text, uint8_t *out, size_t n)
{
    static const char digits[] = "0123456789abcdef";

    if (strlen(text) != 2 * n)
        return false;
    for (size_t i = 0; i < 2 * n; i++) {
        const char *d = memchr(digits, text[i], 16);

        if (d == NULL)
            return false;
        out[i / 2] = (uint8_t)(out[i / 2] << 4 | (d - digits));
    }
    return true;
}

static const char *
yes_no(bool b)
{
    return b ? "true" : "false";
}

static int
write_session(const struct manifest *m, struct buf *out, struct err *e)
{
    const struct ledger_meta *s = &m->c.meta;
    char a[HEX_ROOM], b[HEX_ROOM], c[HEX_ROOM];

    /* Names and labels need no escapes: ledger_meta_wrong(), ledger_point_wrong(). */
    return buf_addf(out, e,
                    "{\n \"format\": \"fathom session\",\n \"version\": %d,\n"
                    " \"tokens_only\": %s,\n \"session\": {\"name\": \"%s\", "
                    "\"created_ms\": %" PRIu64 ", \"turns\": %" PRIu64
                    ", \"rollbacks\": %" PRIu64 ", \"turn_open\": %s, "
                    "\"fingerprint\": \"%s\"},\n"
                    " \"tokens\": {\"n\": %" PRIu64 ", \"xxh3\": \"%s\"},\n"
                    " \"ops\": {\"n\": %zu, \"xxh3\": \"%s\"},\n",
                    ARCHIVE_VERSION, yes_no(m->tokens_only), s->name, s->created_ms,
                    s->turns, s->rollbacks, yes_no(s->turn_open),
                    hex(s->fingerprint, sizeof s->fingerprint, a), m->c.len,
                    hex(m->tokens.b, sizeof m->tokens.b, b), m->c.n_ops,
                    hex(m->ops.b, sizeof m->ops.b, c));
}

static int
write_file(const struct ledger_file *f, const struct archive_hash *head, bool last,
           struct buf *out, struct err *e)
{
    char name[KVFILE_NAME_MAX], a[HEX_ROOM], b[HEX_ROOM];

    kvfile_name(&f->about, name);
    return buf_addf(out, e,
                    "  {\"name\": \"%s\", \"type\": %d, \"id\": \"%s\", \"pos\": %" PRIu64
                    ", \"n_tokens\": %" PRIu32 ", \"n_pages\": %" PRIu32
                    ", \"state_bytes\": %" PRIu64 ", \"logits\": %s, \"turn\": %s, "
                    "\"bytes\": %" PRIu64 ", \"head\": \"%s\"}%s\n",
                    name, (int)f->about.type, hex(f->about.id.b, sizeof f->about.id.b, a),
                    f->about.pos, f->about.n_tokens, f->n_pages, f->about.state_bytes,
                    yes_no(f->about.logits), yes_no(f->turn), f->bytes,
                    hex(head->b, sizeof head->b, b), last ? "" : ",");
}

int
manifest_write(const struct manifest *m, struct buf *out, struct err *e)
{
    struct archive_hash h;
    char digest[HEX_ROOM];

    if (write_session(m, out, e) == -1 || buf_adds(out, " \"points\": [\n", e) == -1)
        return -1;
    for (size_t i = 0; i < m->c.n_points; i++) {
        const struct ledger_point *p = &m->c.points[i];

        if (buf_addf(out, e,
                     "  {\"label\": \"%s\", \"automatic\": %s, \"pos\": %" PRIu64
                     ", \"made_ms\": %" PRIu64 "}%s\n",
                     p->label, yes_no(p->automatic), p->pos, p->made_ms,
                     i + 1 < m->c.n_points ? "," : "") == -1)
            return -1;
    }
    if (buf_adds(out, " ],\n \"files\": [\n", e) == -1)
        return -1;
    for (size_t i = 0; i < m->c.n_files; i++) {
        if (write_file(&m->c.files[i], &m->heads[i], i + 1 == m->c.n_files, out, e) == -1)
            return -1;
    }
    if (buf_adds(out, " ],\n", e) == -1)
        return -1;
    archive_hash(out->p, out->len, &h);
    return buf_addf(out, e, "%s%s\"\n}\n", digest_key, hex(h.b, sizeof h.b, digest));
}

static int
wrong(struct err *e, const char *what)
{
    return err_set(e, ERR_DAMAGED, 0, "manifest.json: %s", what);
}

/* In front of the parser: what comes from a broken disk or wire gets no further. */
static int
check_digest(const char *text, size_t n, struct err *e)
{
    const size_t tail = sizeof digest_key - 1 + 32 + sizeof "\"\n}\n" - 1;
    struct archive_hash h;
    char want[HEX_ROOM];

    if (n < tail || memcmp(text + n - tail, digest_key, sizeof digest_key - 1) != 0)
        return wrong(e, "does not end with its digest");
    archive_hash(text, n - tail, &h);
    if (memcmp(text + n - 36, hex(h.b, sizeof h.b, want), 32) != 0)
        return wrong(e, "its digest is another one");
    return 0;
}

static int
unpack_failed(const json_error_t *why, const char *where, struct err *e)
{
    return err_set(e, ERR_DAMAGED, 0, "manifest.json: %s: %.160s", where, why->text);
}

static int
read_session(json_t *o, struct manifest *m, struct err *e)
{
    struct ledger_meta *s = &m->c.meta;
    json_int_t created, turns, rollbacks;
    const char *name, *fingerprint;
    json_error_t why;
    int turn_open;

    if (json_unpack_ex(o, &why, JSON_STRICT, "{s:s, s:I, s:I, s:I, s:b, s:s}", "name",
                       &name, "created_ms", &created, "turns", &turns, "rollbacks",
                       &rollbacks, "turn_open", &turn_open, "fingerprint",
                       &fingerprint) == -1)
        return unpack_failed(&why, "session", e);
    if (strlen(name) > LEDGER_NAME_MAX || created < 0 || turns < 0 || rollbacks < 0 ||
        !unhex(fingerprint, s->fingerprint, sizeof s->fingerprint))
        return wrong(e, "session: a value out of range");
    strcpy(s->name, name);
    s->created_ms = (uint64_t)created;
    s->turns = (uint64_t)turns;
    s->rollbacks = (uint64_t)rollbacks;
    s->turn_open = (uint32_t)turn_open;
    return ledger_meta_wrong(s) != NULL ? wrong(e, ledger_meta_wrong(s)) : 0;
}

static int
read_point(json_t *o, uint64_t len, struct ledger_point *p, struct err *e)
{
    json_int_t pos, made;
    const char *label;
    json_error_t why;
    int automatic;

    if (json_unpack_ex(o, &why, JSON_STRICT, "{s:s, s:b, s:I, s:I}", "label", &label,
                       "automatic", &automatic, "pos", &pos, "made_ms", &made) == -1)
        return unpack_failed(&why, "points", e);
    if (strlen(label) > LEDGER_NAME_MAX || pos < 0 || made < 0)
        return wrong(e, "points: a value out of range");
    strcpy(p->label, label);
    p->automatic = automatic != 0;
    p->pos = (uint64_t)pos;
    p->made_ms = (uint64_t)made;
    return ledger_point_wrong(p, len) != NULL ? wrong(e, ledger_point_wrong(p, len)) : 0;
}

static int
read_file(json_t *o, uint64_t len, struct ledger_file *f, struct archive_hash *head,
          struct err *e)
{
    json_int_t type, pos, n_tokens, n_pages, state_bytes, bytes;
    const char *name, *id, *hash;
    char want[KVFILE_NAME_MAX];
    json_error_t why;
    int logits, turn;

    if (json_unpack_ex(o, &why, JSON_STRICT,
                       "{s:s, s:I, s:s, s:I, s:I, s:I, s:I, s:b, s:b, s:I, s:s}", "name",
                       &name, "type", &type, "id", &id, "pos", &pos, "n_tokens", &n_tokens,
                       "n_pages", &n_pages, "state_bytes", &state_bytes, "logits", &logits,
                       "turn", &turn, "bytes", &bytes, "head", &hash) == -1)
        return unpack_failed(&why, "files", e);
    if (!unhex(id, f->about.id.b, sizeof f->about.id.b) ||
        !unhex(hash, head->b, sizeof head->b) || type < KVFILE_CHUNK ||
        type > KVFILE_STATE || pos < 0 || n_tokens < 0 || n_tokens > KVFILE_CHUNK_TOKENS ||
        n_pages < 0 || n_pages > KVFILE_CHUNK_TOKENS || state_bytes < 0 || bytes < 0 ||
        bytes > ARCHIVE_FILE_MAX)
        return wrong(e, "files: a value out of range");
    f->about.type = (enum kvfile_type)type;
    f->about.pos = (uint64_t)pos;
    f->about.n_tokens = (uint32_t)n_tokens;
    f->about.state_bytes = (uint64_t)state_bytes;
    f->about.logits = logits != 0;
    f->n_pages = (uint32_t)n_pages;
    f->turn = turn != 0;
    f->bytes = (uint64_t)bytes;
    if (ledger_file_wrong(f, len) != NULL)
        return wrong(e, ledger_file_wrong(f, len));
    kvfile_name(&f->about, want);
    return strcmp(name, want) != 0 ? wrong(e, "files: a name that is not the file's") : 0;
}

static int
read_lists(json_t *points, json_t *files, struct manifest *m, struct err *e)
{
    struct ledger_content *c = &m->c;

    if (m->tokens_only && json_array_size(files) > 0)
        return wrong(e, "files, although it says tokens_only");
    c->points = calloc(json_array_size(points) + 1, sizeof *c->points);
    c->files = calloc(json_array_size(files) + 1, sizeof *c->files);
    m->heads = calloc(json_array_size(files) + 1, sizeof *m->heads);
    if (c->points == NULL || c->files == NULL || m->heads == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for manifest.json");
    for (; c->n_points < json_array_size(points); c->n_points++) {
        if (read_point(json_array_get(points, c->n_points), c->len, &c->points[c->n_points],
                       e) == -1)
            return -1;
    }
    for (; c->n_files < json_array_size(files); c->n_files++) {
        if (read_file(json_array_get(files, c->n_files), c->len, &c->files[c->n_files],
                      &m->heads[c->n_files], e) == -1)
            return -1;
    }
    return ledger_labels_differ(c) == 1 ? 0 : wrong(e, "points: two of one label");
}

static int
read_all(json_t *root, struct manifest *m, struct err *e)
{
    json_t *session, *points, *files;
    json_int_t version = 0, len, n_ops;
    const char *format = "", *tokens, *ops, *digest;
    json_error_t why;
    int tokens_only;

    if (json_unpack(root, "{s:s, s:I}", "format", &format, "version", &version) == -1 ||
        strcmp(format, "fathom session") != 0)
        return wrong(e, "not one of an exported session");
    if (version != ARCHIVE_VERSION)
        return err_set(e, version > ARCHIVE_VERSION ? ERR_MODEL_MISMATCH : ERR_DAMAGED, 0,
                       "manifest.json: version %" JSON_INTEGER_FORMAT
                       " of the format, this fathomd knows %d",
                       version, ARCHIVE_VERSION);
    if (json_unpack_ex(root, &why, JSON_STRICT,
                       "{s:s, s:I, s:b, s:o, s:{s:I, s:s}, s:{s:I, s:s}, s:o, s:o, s:s}",
                       "format", &format, "version", &version, "tokens_only", &tokens_only,
                       "session", &session, "tokens", "n", &len, "xxh3", &tokens, "ops",
                       "n", &n_ops, "xxh3", &ops, "points", &points, "files", &files,
                       "digest", &digest) == -1)
        return unpack_failed(&why, "top", e);
    if (len < 0 || (uint64_t)len > LEDGER_MAX_TOKENS || n_ops < 0 || n_ops > LEDGER_OPS ||
        !unhex(tokens, m->tokens.b, sizeof m->tokens.b) ||
        !unhex(ops, m->ops.b, sizeof m->ops.b) || !json_is_array(points) ||
        !json_is_array(files))
        return wrong(e, "a value out of range");
    m->tokens_only = tokens_only != 0;
    m->c.len = (uint64_t)len;
    m->c.n_ops = (size_t)n_ops;
    return read_session(session, m, e) == -1 || read_lists(points, files, m, e) == -1 ? -1
                                                                                      : 0;
}

int
manifest_read(const char *text, size_t n, struct manifest *m, struct err *e)
{
    json_error_t why;
    json_t *root;
    int rc;

    *m = (struct manifest){0};
    if (check_digest(text, n, e) == -1)
        return -1;
    root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (root == NULL)
        return unpack_failed(&why, "JSON", e);
    rc = read_all(root, m, e);
    json_decref(root);
    return rc;
}

void
manifest_done(struct manifest *m)
{
    free(m->c.points);
    free(m->c.files);
    free(m->heads);
    *m = (struct manifest){0};
}
