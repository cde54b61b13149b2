/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TOOLS_DOC_H
#define TOOLS_DOC_H

/*
 * Tables of documents that are made from the program's own: what stands between two marks in
 * the file is printed anew, all else as it is. Returns an exit status.
 */
int doc_update(const char *program, const char *path, const char *begin_mark,
               const char *end_mark, void (*print)(void));

#endif /* TOOLS_DOC_H */
