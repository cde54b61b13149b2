/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PROTO_UTF8_H
#define PROTO_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* The length of the longest prefix that is well-formed UTF-8 (no overlong forms, surrogates,
 * or code points past U+10FFFF): len itself if all of it is. */
size_t utf8_valid(const uint8_t *p, size_t len);

#endif /* PROTO_UTF8_H */
