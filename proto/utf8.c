/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is it UTF-8? Table 3-7 of the Unicode standard: the first byte fixes how many follow and
 * what range the second one may have; the rest are 80..BF.
 */
#include "config.h"

#include <string.h>

#include "proto/utf8.h"

size_t
utf8_valid(const uint8_t *p, size_t len)
{
    size_t at = 0;

    while (at < len) {
        const uint8_t c = p[at];
        uint8_t low = 0x80, high = 0xbf;
        size_t more;

        if (c < 0x80) {
            uint64_t eight;

            /* Eight plain bytes at once: most text is mostly these. */
            while (len - at >= sizeof eight) {
                memcpy(&eight, p + at, sizeof eight);
                if (eight & UINT64_C(0x8080808080808080))
                    break;
                at += sizeof eight;
            }
            while (at < len && p[at] < 0x80)
                at++;
            continue;
        }
        if (c >= 0xc2 && c <= 0xdf) {
            more = 1;
        } else if (c >= 0xe0 && c <= 0xef) {
            more = 2;
            low = c == 0xe0 ? 0xa0 : 0x80;
            high = c == 0xed ? 0x9f : 0xbf;
        } else if (c >= 0xf0 && c <= 0xf4) {
            more = 3;
            low = c == 0xf0 ? 0x90 : 0x80;
            high = c == 0xf4 ? 0x8f : 0xbf;
        } else {
            return at;
        }
        if (len - at <= more || p[at + 1] < low || p[at + 1] > high)
            return at;
        for (size_t i = 2; i <= more; i++) {
            if (p[at + i] < 0x80 || p[at + i] > 0xbf)
                return at;
        }
        at += more + 1;
    }
    return len;
}
