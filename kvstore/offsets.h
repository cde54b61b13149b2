/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_OFFSETS_H
#define KVSTORE_OFFSETS_H

#include "base/index_t.h"

/*
 * Where things lie in a file of class B and in the sequence of chunks: one text for C and for the
 * prover (verify/files.cc).
 */
enum { OFFSETS_BLOCK = 4096 }; /* KVFILE_ALIGN */

/* n bytes and the zeros behind them, up to the next whole block. */
INDEX_FN INDEX_T
whole_blocks(INDEX_T n)
{
    return (n + OFFSETS_BLOCK - 1) / OFFSETS_BLOCK * OFFSETS_BLOCK;
}

/* Where the section behind one of n bytes at `at` begins. */
INDEX_FN INDEX_T
section_behind(INDEX_T at, INDEX_T n)
{
    return at + whole_blocks(n);
}

#endif /* KVSTORE_OFFSETS_H */
