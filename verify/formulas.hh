/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VERIFY_FORMULAS_HH
#define VERIFY_FORMULAS_HH

#include "verify/term.hh"
/* The formulas that ship, as terms over whole numbers. */
#define INDEX_FN                     static inline
#define INDEX_T                      verify::Int
#define INDEX_IF(condition, yes, no) verify::choose((condition), (yes), (no))
namespace formula
{
#include "gpu/index.h"
#include "kvstore/offsets.h"
} // namespace formula

#undef INDEX_FN
#undef INDEX_T
#undef INDEX_IF

#endif /* VERIFY_FORMULAS_HH */
