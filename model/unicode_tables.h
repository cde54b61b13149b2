/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_UNICODE_TABLES_H
#define MODEL_UNICODE_TABLES_H

#include <stdint.h>

/*
 * A character of the same main category (L, M, N, P, S or C) and the same number of UTF-8
 * bytes that PCRE2 has known since 10.40 (Unicode 14), for one that it may not know or not
 * know rightly; `c` itself for all others.
 */
uint32_t unicode_stand_in(uint32_t c);

#endif /* MODEL_UNICODE_TABLES_H */
