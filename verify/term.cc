/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/term.hh"

#include <utility>

namespace verify
{

Z3_context
context()
{
    static Z3_context c = nullptr;

    if (c == nullptr) {
        const Z3_config config = Z3_mk_config();

        Z3_set_param_value(config, "model", "true");
        c = Z3_mk_context(config); /* terms live as long as the process: it ends soon */
        Z3_del_config(config);
    }
    return c;
}

static Z3_ast
unknown_of(Z3_sort sort, const char *name)
{
    return Z3_mk_const(context(), Z3_mk_string_symbol(context(), name), sort);
}

Z3_ast
Int::number(const std::string &digits)
{
    return Z3_mk_numeral(context(), digits.c_str(), Z3_mk_int_sort(context()));
}

Int
unknown(const char *name)
{
    return Int(unknown_of(Z3_mk_int_sort(context()), name));
}

Z3_ast
word(unsigned bits, uint64_t n)
{
    return Z3_mk_unsigned_int64(context(), n, Z3_mk_bv_sort(context(), bits));
}

Z3_ast
word_unknown(unsigned bits, const char *name)
{
    return unknown_of(Z3_mk_bv_sort(context(), bits), name);
}

Bool
operator&&(Bool x, Bool y)
{
    const Z3_ast both[] = {x.a, y.a};

    return {Z3_mk_and(context(), 2, both)};
}

Bool
operator||(Bool x, Bool y)
{
    const Z3_ast either[] = {x.a, y.a};

    return {Z3_mk_or(context(), 2, either)};
}

Bool
operator!(Bool x)
{
    return {Z3_mk_not(context(), x.a)};
}

Bool
implies(Bool x, Bool y)
{
    return {Z3_mk_implies(context(), x.a, y.a)};
}

Int
operator+(Int x, Int y)
{
    const Z3_ast terms[] = {x.a, y.a};

    return Int(Z3_mk_add(context(), 2, terms));
}

Int
operator-(Int x, Int y)
{
    const Z3_ast terms[] = {x.a, y.a};

    return Int(Z3_mk_sub(context(), 2, terms));
}

Int
operator*(Int x, Int y)
{
    const Z3_ast terms[] = {x.a, y.a};

    return Int(Z3_mk_mul(context(), 2, terms));
}

Int
operator/(Int x, Int y)
{
    return Int(Z3_mk_div(context(), x.a, y.a));
}

Int
operator%(Int x, Int y)
{
    return Int(Z3_mk_mod(context(), x.a, y.a));
}

Bool
operator==(Int x, Int y)
{
    return {Z3_mk_eq(context(), x.a, y.a)};
}

Bool
operator!=(Int x, Int y)
{
    return !(x == y);
}

Bool
operator<(Int x, Int y)
{
    return {Z3_mk_lt(context(), x.a, y.a)};
}

Bool
operator<=(Int x, Int y)
{
    return {Z3_mk_le(context(), x.a, y.a)};
}

Bool
operator>(Int x, Int y)
{
    return y < x;
}

Bool
operator>=(Int x, Int y)
{
    return y <= x;
}

Int
choose(Bool c, Int x, Int y)
{
    return Int(Z3_mk_ite(context(), c.a, x.a, y.a));
}

static std::vector<Bool> duties, branches;

void
duty(Bool b)
{
    for (const Bool &c : branches)
        b = implies(c, b);
    b.a = Z3_simplify(context(), b.a);
    if (Z3_get_bool_value(context(), b.a) != Z3_L_TRUE)
        duties.push_back(b);
}

std::vector<Bool>
take_duties()
{
    return std::move(duties);
}

Branch::Branch(Bool condition)
{
    branches.push_back(condition);
}

Branch::~Branch()
{
    branches.pop_back();
}

} // namespace verify
