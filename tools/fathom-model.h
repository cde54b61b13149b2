/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TOOLS_FATHOM_MODEL_H
#define TOOLS_FATHOM_MODEL_H

#include <stdbool.h>

struct err;

/* The commands of fathom-model, one file each. 0, or -1 with *e set. */
int model_show(const char *dir, bool as_json, struct err *e);
int model_tokenize(const char *dir, struct err *e);

#endif /* TOOLS_FATHOM_MODEL_H */
