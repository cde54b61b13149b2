/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stages that cut text into words before byte pairs are merged (spec 11, stage 2).
 *
 * The expressions come from tokenizer.json and run in PCRE2, compiled to machine code where
 * the system allows that (not under MemoryDenyWriteExecute) and interpreted where not. Two
 * things keep the outcome equal to the reference's: an expression may only use syntax that
 * means the same in both libraries (portable()), and characters that PCRE2's tables do not
 * have are replaced, for the eyes of the expressions, by stand-ins of equal category and
 * length (unicode_tables.c). Stages nest by recursion, at most SPLIT_STAGES deep, so that no
 * list of pieces is kept and words come out in the order of the text.
 */
#include <config.h> /* "config.h" would be model/config.h */

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/utf8.h"
#include "model/tokenizer_split.h"
#include "model/unicode_tables.h"

/* One call of split_text. */
struct splitting {
    const struct split *split;
    const char *text; /* with stand-ins */
    pcre2_match_data *match;
    pcre2_match_context *limits;
    int (*word)(void *arg, size_t at, size_t len, struct err *e);
    void *arg;
};

/* `\p{X}` of a main category: p points behind the backslash. The number of bytes, or 0. */
static size_t
category_escape(const char *p)
{
    if ((p[0] == 'p' || p[0] == 'P') && p[1] == '{' && p[2] != '\0' &&
        strchr("LMNPSZC", p[2]) != NULL && p[3] == '}')
        return 4;
    return 0;
}

/*
 * Only what reads the same in Oniguruma and PCRE2 and needs no other tables than those of
 * main categories: of escapes \p{L} and its like, \s \S \r \n \t and punctuation; no nested
 * or intersected classes, no (?flags), no anchors, which differ in what a line is.
 */
static int
portable(const char *pattern, struct err *e)
{
    bool in_class = false;

    for (const char *p = pattern; *p != '\0'; p++) {
        if (*p == '\\') {
            const size_t n = category_escape(++p);

            if (n > 0)
                p += n - 1;
            else if (*p == '\0' ||
                     (strchr("sSrnt", *p) == NULL &&
                      strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", *p) == NULL))
                return err_set(e, ERR_MODEL_MISMATCH, 0,
                               "split pattern: the escape '\\%.1s' is not supported", p);
        } else if (in_class) {
            if (*p == '[' || strncmp(p, "&&", 2) == 0)
                return err_set(e, ERR_MODEL_MISMATCH, 0,
                               "split pattern: a class within a class is not supported");
            in_class = *p != ']';
        } else if (*p == '[') {
            in_class = true;
            p += p[1] == '^';
            if (p[1] == ']')
                return err_set(e, ERR_MODEL_MISMATCH, 0,
                               "split pattern: a class that begins with ']'");
        } else if (*p == '^' || *p == '$' || *p == '.') {
            return err_set(e, ERR_MODEL_MISMATCH, 0, "split pattern: '%c' is not supported",
                           *p);
        } else if (strncmp(p, "(?", 2) == 0 && p[2] != ':' && p[2] != '!' && p[2] != '=') {
            return err_set(e, ERR_MODEL_MISMATCH, 0,
                           "split pattern: a group '(?%.1s' is not supported", p + 2);
        } else if (strncmp(p, "(*", 2) == 0) {
            return err_set(e, ERR_MODEL_MISMATCH, 0,
                           "split pattern: '(*' is not supported");
        }
    }
    return 0;
}

int
split_add(struct split *s, const char *pattern, struct err *e)
{
    const uint32_t options = PCRE2_UTF | PCRE2_UCP;
    pcre2_code *code;
    uint32_t may_be_empty = 1;
    PCRE2_SIZE at;
    int why;

    if (s->n == SPLIT_STAGES)
        return err_set(e, ERR_MODEL_MISMATCH, 0, "more than %d Split stages", SPLIT_STAGES);
    if (portable(pattern, e) == -1)
        return -1;
    code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &why, &at, NULL);
    if (code == NULL) {
        char text[128];

        pcre2_get_error_message(why, (PCRE2_UCHAR *)text, sizeof text);
        return err_set(e, ERR_DAMAGED, 0, "split pattern, byte %zu: %s", (size_t)at, text);
    }
    pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &may_be_empty);
    if (may_be_empty) {
        pcre2_code_free(code);
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "split pattern: one that matches nothing at all is not supported");
    }
    /* Where this fails, pcre2_match interprets: slower, the same answers. */
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    s->stage[s->n++] = code;
    return 0;
}

void
split_done(struct split *s)
{
    for (unsigned i = 0; i < s->n; i++)
        pcre2_code_free(s->stage[i]);
    *s = (struct split){0};
}

/* The next match in a piece, from byte `from` on: 1 and its ends, 0 for none. */
static int
next_match(struct splitting *run, unsigned stage, const char *piece, size_t len,
           size_t from, size_t ends[2], struct err *e)
{
    const pcre2_code *code = run->split->stage[stage];
    int rc = pcre2_match(code, (PCRE2_SPTR)piece, len, from, PCRE2_NO_UTF_CHECK, run->match,
                         run->limits);

    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(code, (PCRE2_SPTR)piece, len, from,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, run->match, run->limits);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0) {
        char text[128];

        pcre2_get_error_message(rc, (PCRE2_UCHAR *)text, sizeof text);
        return err_set(e, rc == PCRE2_ERROR_NOMEMORY ? ERR_QUOTA : ERR_INVALID, 0,
                       "the tokenizer's split expression fails on this text: %s", text);
    }
    memcpy(ends, pcre2_get_ovector_pointer(run->match), 2 * sizeof ends[0]);
    assert(ends[0] >= from && ends[1] > ends[0] && ends[1] <= len);
    return 1;
}

static int
split_piece(struct splitting *run, unsigned stage, size_t at, size_t len, struct err *e)
{
    const char *piece = run->text + at;
    size_t done = 0, ends[2];

    if (stage == run->split->n)
        return run->word(run->arg, at, len, e);
    while (done < len) {
        const int rc = next_match(run, stage, piece, len, done, ends, e);

        if (rc == -1)
            return -1;
        if (rc == 0)
            return split_piece(run, stage + 1, at + done, len - done, e);
        if (ends[0] > done &&
            split_piece(run, stage + 1, at + done, ends[0] - done, e) == -1)
            return -1;
        if (split_piece(run, stage + 1, at + ends[0], ends[1] - ends[0], e) == -1)
            return -1;
        done = ends[1];
    }
    return 0;
}

static void
put_char(char *p, uint32_t c, int n)
{
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};

    for (int i = n - 1; i > 0; i--, c >>= 6)
        p[i] = (char)(0x80 | (c & 0x3f));
    p[0] = (char)(lead[n] | c);
}

/* A copy of the text with stand-ins in it, or *copy == NULL where there is nothing to
 * replace. Characters below U+0800 never need one. */
static int
with_stand_ins(const char *text, size_t len, char **copy, struct err *e)
{
    *copy = NULL;
    for (size_t i = 0; i < len;) {
        const uint8_t lead = (uint8_t)text[i];
        const int n = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
        const uint32_t c = n < 3 ? lead : utf8_decode(text + i, n);
        const uint32_t other = n < 3 ? c : unicode_stand_in(c);

        if (other != c) {
            if (*copy == NULL) {
                *copy = malloc(len);
                if (*copy == NULL)
                    return err_set(e, ERR_QUOTA, errno, "no memory for %zu bytes", len);
                memcpy(*copy, text, len);
            }
            put_char(*copy + i, other, n);
        }
        i += (size_t)n;
    }
    return 0;
}

int
split_text(const struct split *s, const char *text, size_t len,
           int (*word)(void *arg, size_t at, size_t len, struct err *e), void *arg,
           struct err *e)
{
    struct splitting run = {.split = s, .text = text, .word = word, .arg = arg};
    char *copy = NULL;
    int rc = -1;

    if (len == 0)
        return 0;
    if (with_stand_ins(text, len, &copy, e) == -1)
        return -1;
    if (copy != NULL)
        run.text = copy;
    run.match = pcre2_match_data_create(1, NULL);
    run.limits = pcre2_match_context_create(NULL);
    if (run.match == NULL || run.limits == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory to match with");
        goto out;
    }
    /* Backtracking over a long run of blanks takes a step each: that much, and not the
     * exponential amounts that an ill-made expression could want. */
    pcre2_set_match_limit(run.limits, len > (UINT32_MAX - 1000000) / 8
                                          ? UINT32_MAX
                                          : (uint32_t)len * 8 + 1000000);
    rc = split_piece(&run, 0, 0, len, e);
out:
    pcre2_match_data_free(run.match);
    pcre2_match_context_free(run.limits);
    free(copy);
    return rc;
}
