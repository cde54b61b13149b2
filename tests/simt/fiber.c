/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "tests/simt/fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* No power of two: tops of stacks would share a few lines of the cache. A multiple of 64. */
#ifdef __SANITIZE_ADDRESS__
#    include <sanitizer/asan_interface.h>
#    include <sanitizer/common_interface_defs.h>

enum { STACK = 192 * 1024 + 832 };
#else
enum { STACK = 24 * 1024 + 832 };
#endif

enum { CANARY = 0x5a };

struct fiber fiber_home;
static struct fiber *fibers;
static size_t n_fibers;

/* What a callee must keep goes on the stack, and the stack is exchanged. */
void fiber_swap(void **save, void *to);
__asm__(".text\n"
        ".p2align 4\n"
        ".globl fiber_swap\n"
        ".hidden fiber_swap\n"
        ".type fiber_swap, @function\n"
        "fiber_swap:\n"
        "    push %rbp\n"
        "    push %rbx\n"
        "    push %r12\n"
        "    push %r13\n"
        "    push %r14\n"
        "    push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov %rsi, %rsp\n"
        "    pop %r15\n"
        "    pop %r14\n"
        "    pop %r13\n"
        "    pop %r12\n"
        "    pop %rbx\n"
        "    pop %rbp\n"
        "    ret\n"
        ".size fiber_swap, . - fiber_swap\n");

/* All in one piece and on large pages: a switch should not miss in the table of pages. */
struct fiber *
fiber_some(size_t n)
{
    const size_t bytes = n * STACK;
    uint8_t *stacks;

    if (n <= n_fibers)
        return fibers;
    if (n_fibers > 0)
        munmap(fibers[0].stack, n_fibers * STACK);
    free(fibers);
    n_fibers = 0;
    fibers = calloc(n, sizeof *fibers);
    stacks = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fibers == NULL || stacks == MAP_FAILED)
        return NULL;
#ifndef __SANITIZE_ADDRESS__
    madvise(stacks, bytes, MADV_HUGEPAGE);
#endif
    for (n_fibers = 0; n_fibers < n; n_fibers++) {
        fibers[n_fibers] =
            (struct fiber){.stack = stacks + n_fibers * STACK, .bytes = STACK};
        memset(fibers[n_fibers].stack, CANARY, 64);
    }
    return fibers;
}

void
fiber_begin(struct fiber *f, void (*entry)(void))
{
    void **sp = (void **)((uint8_t *)f->stack + f->bytes);

    *--sp = NULL; /* as if somebody had called: 8 bytes off a multiple of 16 */
    *--sp = (void *)(uintptr_t)entry;
    for (int i = 0; i < 6; i++)
        *--sp = NULL;
    f->sp = sp;
    f->sanitizer = NULL;
}

#ifdef __SANITIZE_ADDRESS__
__attribute__((no_sanitize("address"))) void
fiber_switch(struct fiber *from, struct fiber *to, int ended)
{
    __sanitizer_start_switch_fiber(ended ? NULL : &from->sanitizer, to->stack, to->bytes);
    fiber_swap(&from->sp, to->sp);
    __sanitizer_finish_switch_fiber(from->sanitizer, NULL, NULL);
}

__attribute__((no_sanitize("address"))) void
fiber_entered(void)
{
    const void *stack;
    size_t bytes;

    __sanitizer_finish_switch_fiber(NULL, &stack, &bytes);
    if (fiber_home.stack == NULL) { /* the first fiber of all comes from there */
        fiber_home.stack = (void *)(uintptr_t)stack;
        fiber_home.bytes = bytes;
    }
}
#else
void
fiber_switch(struct fiber *from, struct fiber *to, int ended)
{
    (void)ended;
    fiber_swap(&from->sp, to->sp);
}

void
fiber_entered(void)
{
}
#endif

void
fiber_forget(struct fiber *f, size_t n)
{
    for (size_t i = 0; i < n; i++) {
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(f[i].stack, f[i].bytes);
#endif
        if (*(const uint8_t *)f[i].stack != CANARY)
            abort(); /* a stack was too small: what ran since is worth nothing */
    }
}
