/* SPDX-License-Identifier: Apache-2.0 */
/* The backends that are built in. */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "gpu/backend.h"

const struct backend_ops *
backend_find(const char *name, struct err *e)
{
    if (name == NULL || strcmp(name, "auto") == 0 || strcmp(name, backend_cpu.name) == 0)
        return &backend_cpu;
    err_set(e, ERR_NOT_FOUND, 0, "no backend \"%s\"; there is: cpu", name);
    return NULL;
}
