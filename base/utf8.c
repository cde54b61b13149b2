/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <string.h>

#include "base/utf8.h"

int
utf8_char(const void *p, size_t n)
{
    const uint8_t *s = p;
    uint8_t low = 0x80, high = 0xbf; /* of the second byte */
    int need;

    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return -1;
    need = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    switch (s[0]) {
    case 0xe0: low = 0xa0; break;  /* else overlong */
    case 0xed: high = 0x9f; break; /* else a surrogate */
    case 0xf0: low = 0x90; break;  /* else overlong */
    case 0xf4: high = 0x8f; break; /* else past U+10FFFF */
    default: break;
    }
    for (int i = 1; i < need; i++) {
        if ((size_t)i == n)
            return 0;
        if (s[i] < low || s[i] > high)
            return -i;
        low = 0x80;
        high = 0xbf;
    }
    return need;
}

size_t
utf8_valid(const void *p, size_t n)
{
    const uint8_t *s = p;
    size_t i = 0;

    while (i < n) {
        uint64_t eight;
        int k;

        if (n - i >= sizeof eight) {
            memcpy(&eight, s + i, sizeof eight);
            if ((eight & 0x8080808080808080) == 0) {
                i += sizeof eight;
                continue;
            }
        }
        k = utf8_char(s + i, n - i);
        if (k <= 0)
            break;
        i += (size_t)k;
    }
    return i;
}

uint32_t
utf8_decode(const void *p, int n)
{
    static const uint8_t bits[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    const uint8_t *s = p;
    uint32_t c = s[0] & bits[n];

    for (int i = 1; i < n; i++)
        c = c << 6 | (s[i] & 0x3f);
    return c;
}
