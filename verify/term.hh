/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VERIFY_TERM_HH
#define VERIFY_TERM_HH

#include <z3.h>

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

/*
 * Numbers that are not known yet. The formulas of gpu/index.h are written for INDEX_T and
 * INDEX_INT, with INDEX_IF where a value depends on a condition: compiled for the program
 * these are uint64_t and int, and compiled here types whose operators build terms for Z3
 * (its C API). So what is proved is the text that ships, not a copy of it.
 *
 * Int is a whole number without bounds, what obligations think in. Typed<C> is one in a
 * variable of the C type C, what formulas compute with: each of its results is noted as a
 * duty, that C holds it, and a proof has to show its duties besides its claims. Bits<N> is
 * an unsigned word that wraps around as C's does: for bit tricks. One context for the
 * process: a proof lives in a child of its own.
 */
namespace verify
{

Z3_context context();

struct Bool {
    Z3_ast a;

    Bool(Z3_ast ast) : a(ast)
    {
    }

    template <class B, class = std::enable_if_t<std::is_same_v<B, bool>>>
    Bool(B known) : a(known ? Z3_mk_true(context()) : Z3_mk_false(context()))
    {
    }
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

/* What has to hold for the formulas to mean what they say; under the conditions of the
 * branches that are being built (Branch). take_duties() hands them over. */
void duty(Bool b);
std::vector<Bool> take_duties();

struct Branch {
    explicit Branch(Bool condition);
    ~Branch();
    Branch(const Branch &) = delete;
    Branch &operator=(const Branch &) = delete;
};

template <class N> constexpr bool is_number = std::is_integral_v<N> || std::is_enum_v<N>;

template <class C> struct Typed : Int {
    Typed()
    {
    }

    Typed(Int n) : Int(n)
    {
        duty(n >= Int(number(std::to_string(std::numeric_limits<C>::min()))) &&
             n <= Int(number(std::to_string(std::numeric_limits<C>::max()))));
    }

    /* C's conversions, where they keep the value. */
    template <class D> explicit Typed(Typed<D> n) : Typed(Int(n.a))
    {
    }

    template <class N, class = std::enable_if_t<is_number<N>>> Typed(N n) : Int(n)
    {
    }
};

/* The type of C's x op y: as both are, or as the one is that is not a constant. */
template <class X, class Y> struct Common {
};

template <class C> struct Common<Typed<C>, Typed<C>> {
    using type = Typed<C>;
};

template <> struct Common<Typed<int>, Typed<uint64_t>> {
    using type = Typed<uint64_t>;
};

template <> struct Common<Typed<uint64_t>, Typed<int>> {
    using type = Typed<uint64_t>;
};

template <class C, class N>
struct Common<Typed<C>, N> : std::enable_if<is_number<N>, Typed<C>> {
};

template <class C, class N>
struct Common<N, Typed<C>> : std::enable_if<is_number<N>, Typed<C>> {
};

template <class X, class Y, class T = typename Common<X, Y>::type>
T
operator+(X x, Y y)
{
    return T(Int(T(x)) + Int(T(y)));
}

template <class X, class Y, class T = typename Common<X, Y>::type>
T
operator-(X x, Y y)
{
    return T(Int(T(x)) - Int(T(y)));
}

template <class X, class Y, class T = typename Common<X, Y>::type>
T
operator*(X x, Y y)
{
    return T(Int(T(x)) * Int(T(y)));
}

/* C rounds to zero and Z3 down: the same where nothing is negative. */
template <class X, class Y, class T = typename Common<X, Y>::type>
T
operator/(X x, Y y)
{
    duty(Int(T(x)) >= 0 && Int(T(y)) > 0);
    return T(Int(T(x)) / Int(T(y)));
}

template <class X, class Y, class T = typename Common<X, Y>::type>
T
operator%(X x, Y y)
{
    duty(Int(T(x)) >= 0 && Int(T(y)) > 0);
    return T(Int(T(x)) % Int(T(y)));
}

/* INDEX_IF: what is computed on a side has to be right only where that side is taken. */
template <class F>
auto
under(Bool c, F f)
{
    const Branch b(c);

    return f();
}

template <class F, class G>
auto
either(Bool c, F yes, G no)
{
    const auto x = under(c, yes);
    const auto y = under(!c, no);
    using X = std::decay_t<decltype(x)>;
    using Y = std::decay_t<decltype(y)>;

    if constexpr (is_number<X> && is_number<Y>) {
        return choose(c, Int(x), Int(y));
    } else {
        typename Common<X, Y>::type t;

        t.a = choose(c, Int(x), Int(y)).a;
        return t;
    }
}

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

    /* C's conversions of unsigned words: zeros in front, or the low bits. */
    template <unsigned M> explicit Bits(Bits<M> x)
    {
        if constexpr (M < N)
            a = Z3_mk_zero_ext(context(), N - M, x.a);
        else
            a = Z3_mk_extract(context(), N - 1, 0, x.a);
    }

    friend Bits operator~(Bits x)
    {
        return Bits(Z3_mk_bvnot(context(), x.a));
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

} // namespace verify

#endif /* VERIFY_TERM_HH */
