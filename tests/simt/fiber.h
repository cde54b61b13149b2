/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SIMT_FIBER_H
#define TESTS_SIMT_FIBER_H

/* Stacks of their own for functions that take turns on one thread. x86-64 alone: the switch is six
 * registers and a stack pointer, and there are millions of them in a test. */
#include <stddef.h>

struct fiber {
    void *sp;
    void *stack;
    size_t bytes;
    void *sanitizer; /* what AddressSanitizer keeps of it meanwhile */
};

/* The thread's own stack, to come back to. */
extern struct fiber fiber_home;

/* n stacks, kept; NULL without memory. entry never returns. */
struct fiber *fiber_some(size_t n);
void fiber_begin(struct fiber *f, void (*entry)(void));

/* Goes on where `to` is; back when somebody switches to `from`. ended: nobody will. */
void fiber_switch(struct fiber *from, struct fiber *to, int ended);

/* First thing in an entry. */
void fiber_entered(void);

/* Fibers that were left in the middle: their stacks may be used again. */
void fiber_forget(struct fiber *f, size_t n);

#endif /* TESTS_SIMT_FIBER_H */
