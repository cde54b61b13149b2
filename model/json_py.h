/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_JSON_PY_H
#define MODEL_JSON_PY_H

#include <jansson.h>
#include <stddef.h>

struct buf;
struct err;

/*
 * JSON as Python's json.dumps(ensure_ascii=False) writes it, which is what the model saw in
 * training: ", " and ": " between things, keys in the order in which they came, UTF-8 as it
 * is, numbers as repr() prints them. Appends to out. Any thread; v is only read.
 */
int json_py_dump(json_t *v, struct buf *out, struct err *e);
int json_py_string(const char *s, size_t len, struct buf *out, struct err *e);
int json_py_real(double v, struct buf *out, struct err *e); /* finite */

#endif /* MODEL_JSON_PY_H */
