/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_UTF8_H
#define BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/*
 * UTF-8 as Unicode 3.9 table 3-7 defines it: no overlong forms, no surrogates, nothing past
 * U+10FFFF. Looks at the n > 0 bytes at p. Greater than 0: they begin with a whole character
 * of that many bytes. 0: all n of them begin a character whose other bytes are missing.
 * Less than 0: -k, the first k bytes are no part of any character (the longest run that a
 * decoder replaces by one U+FFFD).
 */
int utf8_char(const void *p, size_t n);

/* How many bytes at the start of the n at p are whole characters: n if all of it is UTF-8. */
size_t utf8_valid(const void *p, size_t n);

/* The code point of the whole character at p, which utf8_char has found to be n bytes. */
uint32_t utf8_decode(const void *p, int n);

#endif /* BASE_UTF8_H */
