/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VERIFY_TERM_HH
#define VERIFY_TERM_HH

#include <z3.h>

#include <cstdint>
#include <string>
#include <type_traits>

/*
 * Numbers that are not known yet. The formulas of gpu/index.h are written for INDEX_T, with
 * INDEX_IF where a value depends on a condition: compiled for the program that is uint64_t, and
 * compiled here it is one of these types, whose operators build terms for Z3 (its C API). So what
 * is proved is the text that ships, not a copy of it.
 *
 * Int is a whole number without bounds: the right one for places and counts, as long as it is
 * claimed too that they fit into their C type. Bits<N> is an unsigned word that wraps around as
 * C's does: for bit tricks. One context for the process: a proof lives in a child of its own.
 */
namespace verify
{

Z3_context context();

struct Bool {
    Z3_ast a;
};

Bool operator&&(Bool x, Bool y);
Bool operator||(Bool x, Bool y);
Bool operator!(Bool x);
Bool implies(Bool x, Bool y);

struct Int {
    Z3_ast a;

    Int() : a(nullptr)
    {
    }

    explicit Int(Z3_ast ast) : a(ast)
    {
    }

    template <class N, class = std::enable_if_t<std::is_integral_v<N> || std::is_enum_v<N>>>
    Int(N n) : a(number(std::to_string(static_cast<long long>(n))))
    {
    }

    static Z3_ast number(const std::string &digits);
};

Int unknown(const char *name); /* any whole number */
Int operator+(Int x, Int y);
Int operator-(Int x, Int y);
Int operator*(Int x, Int y);
Int operator/(Int x, Int y); /* of numbers that are not negative: as C's */
Int operator%(Int x, Int y);
Bool operator==(Int x, Int y);
Bool operator!=(Int x, Int y);
Bool operator<(Int x, Int y);
Bool operator<=(Int x, Int y);
Bool operator>(Int x, Int y);
Bool operator>=(Int x, Int y);
Int choose(Bool c, Int x, Int y);

Z3_ast word(unsigned bits, uint64_t n);
Z3_ast word_unknown(unsigned bits, const char *name);

template <unsigned N> struct Bits {
    Z3_ast a;

    Bits() : a(nullptr)
    {
    }

    explicit Bits(Z3_ast ast) : a(ast)
    {
    }

    template <class I, class = std::enable_if_t<std::is_integral_v<I> || std::is_enum_v<I>>>
    Bits(I n) : a(word(N, static_cast<uint64_t>(n)))
    {
    }

    static Bits unknown(const char *name)
    {
        return Bits(word_unknown(N, name));
    }

    friend Bits operator+(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvadd(context(), x.a, y.a));
    }

    friend Bits operator-(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvsub(context(), x.a, y.a));
    }

    friend Bits operator*(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvmul(context(), x.a, y.a));
    }

    friend Bits operator/(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvudiv(context(), x.a, y.a));
    }

    friend Bits operator%(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvurem(context(), x.a, y.a));
    }

    friend Bits operator&(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvand(context(), x.a, y.a));
    }

    friend Bits operator|(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvor(context(), x.a, y.a));
    }

    friend Bits operator^(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvxor(context(), x.a, y.a));
    }

    friend Bits operator<<(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvshl(context(), x.a, y.a));
    }

    friend Bits operator>>(Bits x, Bits y)
    {
        return Bits(Z3_mk_bvlshr(context(), x.a, y.a));
    }

    friend Bool operator==(Bits x, Bits y)
    {
        return {Z3_mk_eq(context(), x.a, y.a)};
    }

    friend Bool operator!=(Bits x, Bits y)
    {
        return !(x == y);
    }

    friend Bool operator<(Bits x, Bits y)
    {
        return {Z3_mk_bvult(context(), x.a, y.a)};
    }

    friend Bool operator<=(Bits x, Bits y)
    {
        return {Z3_mk_bvule(context(), x.a, y.a)};
    }

    friend Bool operator>(Bits x, Bits y)
    {
        return y < x;
    }

    friend Bool operator>=(Bits x, Bits y)
    {
        return y <= x;
    }
};

template <unsigned N>
Bits<N>
choose(Bool c, Bits<N> x, Bits<N> y)
{
    return Bits<N>(Z3_mk_ite(context(), c.a, x.a, y.a));
}

/* The low bits of a wider word, as a C conversion gives them. */
template <unsigned TO, unsigned FROM>
Bits<TO>
low_bits(Bits<FROM> x)
{
    return Bits<TO>(Z3_mk_extract(context(), TO - 1, 0, x.a));
}

} // namespace verify

#endif /* VERIFY_TERM_HH */
