/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings (spec 5.3, 6.1): rows of the last positions, a slot for each position modulo the
 * number of slots. SPARE slots more than are looked at, so that the newest SPARE tokens can
 * be taken back: what lay in front of them is still there.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

namespace verify
{

using namespace formula;

enum { SPARE = 16 }; /* MAX_REWIND, CUDA_REWIND */

/* Two positions that a query may need at once, in one slot: the newer would hide the
 * older. */
static void
window_keeps(const Config &k, Statement &s)
{
    const Int window = k.c.window, slots = window_slots(window, SPARE),
              max = k.c.max_positions;
    const Int t = s.any("t", 0, max - 1), p = s.any("p", 0, max - 1),
              w = s.any("w", 0, max - 1);

    s.assume(p >= window_first(t, window) && p <= t);
    s.assume(w > p && w <= t + (s.mutant ? SPARE + 1 : SPARE));
    s.claim(ring_slot(p, slots) != ring_slot(w, slots));
}

static void
slot_inside(const Config &k, Statement &s)
{
    const Int slots = window_slots(k.c.window, SPARE),
              p = s.any("p", 0, Int(k.c.max_positions) - 1);

    s.claim(ring_slot(p, slots) >= 0 &&
            ring_slot(p, slots) < (s.mutant ? slots - 1 : slots));
}

static void
window_is_spec(const Config &k, Statement &s)
{
    const Int window = k.c.window, max = k.c.max_positions;
    const Int t = s.any("t", 0, max - 1), p = s.any("p", 0, max - 1);
    const Int first = window_first(s.mutant ? t + 1 : t, window);
    const Bool inside = p >= first && p <= t, spec = p <= t && t - p < window;

    s.claim(implies(inside, spec) && implies(spec, inside));
}

/* Inputs of the compressors: an entry at ratio r looks at its own r positions, with
 * overlap at the r before, too; the ring has r (2 r) + SPARE slots. */
static void
frontier_keeps(const Config &k, Statement &s)
{
    const Int max = k.c.max_positions;

    for (const int ratio : {+MODEL_CSA_RATIO, 128}) {
        const Int r = ratio, back = ratio == MODEL_CSA_RATIO ? 2 * ratio : ratio;
        const std::string n = std::to_string(ratio);
        const Int j = s.any("j" + n, 0, max / r - 1);
        const Int p = s.any("p" + n, 0, max - 1), w = s.any("w" + n, 0, max);
        const Int last = (j + 1) * r - 1;
        const Int slots = frontier_slots(r, ratio == MODEL_CSA_RATIO ? 1 : 0, SPARE);

        s.assume(p > last - back && p <= last && w > p && w <= last + SPARE);
        s.claim(ring_slot(p, s.mutant ? slots - 1 : slots) !=
                ring_slot(w, s.mutant ? slots - 1 : slots));
    }
}

/* Rings of records between processes (proto/ring.c): a record lies in one piece, at a multiple of
 * 8; and what is kept, up to data_bytes from its end, is not written over. One record of the
 * longest always fits. */
static void
records_whole(const Config &, Statement &s)
{
    for (const int payload : {16 + 64, 16 + 4 * 129280}) {
        const std::string of = std::to_string(payload);
        const Int most = ring_record_bytes(payload);

        for (const int n : {1, 16, 4096}) {
            const std::string name = of + "/" + std::to_string(n);
            const Int data = ring_data_bytes(n, most);
            const Int head = s.any("head" + name, 0, Int(int64_t{1} << 50)) * 8;
            const Int need = ring_record_bytes(s.any("payload" + name, 0, payload));
            const Int open = ring_open_at(head, need, data), end = open + need;
            const Int x = s.any("x" + name, 0, Int(int64_t{1} << 54)),
                      y = s.any("y" + name, 0, data);
            const Int kept = s.mutant ? end - data - 1 : end - data;

            s.claim(open % data + need <= data && open % 8 == 0 && need % 8 == 0);
            s.claim(open >= head && open - head < need && need <= most &&
                    end - head <= 2 * most);
            /* a byte of an older record that is not given up, one of this record */
            s.assume(y < need);
            s.claim(implies(x >= kept && x < open, x % data != (open + y) % data));
        }
    }
}

const std::vector<Obligation> rings = {
    {"rings", "window-keeps", "no row of a window is overwritten by the 16 newest tokens",
     true, window_keeps},
    {"rings", "slot-inside", "every slot is inside its ring", true, slot_inside},
    {"rings", "window-is-spec", "a position is in the window iff t - p < window and p <= t",
     true, window_is_spec},
    {"rings", "frontier-keeps", "no compressor input is overwritten while it is needed",
     true, frontier_keeps},
    {"rings", "records-whole", "records lie in one piece, and over none that is kept",
     false, records_whole},
};

} // namespace verify
