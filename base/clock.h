/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

/* Nanoseconds of CLOCK_MONOTONIC: for durations and deadlines, the same in every process. */
uint64_t clock_ns(void);

/* Milliseconds since 1970, UTC: for people, never for deadlines. */
uint64_t clock_wall_ms(void);

#endif /* BASE_CLOCK_H */
