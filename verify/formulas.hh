/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VERIFY_FORMULAS_HH
#define VERIFY_FORMULAS_HH

#include "verify/term.hh"
/* The formulas that ship, as terms over whole numbers. */
#define INDEX_FN  static inline
#define INDEX_T   verify::Typed<uint64_t>
#define INDEX_INT verify::Typed<int>
#define INDEX_IF(condition, yes, no) \
    verify::either((condition), [&] { return yes; }, [&] { return no; })
#define INDEX_SHARE(a, parts) ((a) / (parts))
#define INDEX_REST(a, parts)  ((a) % (parts))

namespace formula
{
#include "gpu/index.h"
#include "gpu/index/attend.h"
#include "gpu/index/attend_many.h"
#include "gpu/index/attention.h"
#include "gpu/index/choose.h"
#include "gpu/index/compress.h"
#include "gpu/index/indexer.h"
#include "gpu/index/inputs.h"
#include "gpu/index/linear.h"
#include "gpu/index/mma.h"
#include "gpu/index/moe.h"
#include "gpu/index/packed.h"
#include "gpu/index/rows.h"
#include "gpu/index/sample.h"
#include "kvstore/offsets.h"
#include "proto/ring_index.h"
} // namespace formula

#undef INDEX_FN
#undef INDEX_T
#undef INDEX_INT
#undef INDEX_IF
#undef INDEX_SHARE
#undef INDEX_REST

#endif /* VERIFY_FORMULAS_HH */
