/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/file.h"
#include "tools/doc.h"

int
doc_update(const char *program, const char *path, const char *begin_mark,
           const char *end_mark, void (*print)(void))
{
    struct err e;
    size_t len;
    char *text = file_read(path, 1 << 20, &len, &e), *begin, *end;

    if (text == NULL) {
        fprintf(stderr, "%s: %s\n", program, e.text);
        return 66;
    }
    begin = strstr(text, begin_mark);
    end = begin != NULL ? strstr(begin, end_mark) : NULL;
    if (end == NULL) {
        fprintf(stderr, "%s: %s: the marks around the tables are missing\n", program, path);
        free(text);
        return 65;
    }
    begin += strlen(begin_mark);
    fwrite(text, 1, (size_t)(begin - text), stdout);
    print();
    fputs(end, stdout);
    free(text);
    return 0;
}
