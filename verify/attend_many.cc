/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of many rows (gpu/cuda/attend_many.cu): 16 warps, four slices of dims for each of four teams
 * of keys, or 32 dims each, and a tile of keys that all of them load. Stages of shared memory: a tile
 * is multiplied while the next one is put down, and slices of the tile before are added up.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"
#include "verify/stages.hh"

extern "C" {
#include "model/kvsize.h"
}

namespace verify
{

using namespace formula;

namespace
{

enum { WARPS = 16, MOST_KEYS = 2304, TOP_EIGHTS = 2 };

/* Parts of shared memory follow one another, aligned as they are used. */
void
plan_is_apart(const Config &, Statement &s)
{
    const Int most = s.any("max_keys", 1, MOST_KEYS);

    for (int eights = 1; eights <= TOP_EIGHTS; eights++) {
        const struct many_plan p = many_plan_for(most, eights);
        const Int tile = many_tile(eights), cap = many_cap(most, eights);

        s.claim(cap >= most && cap % tile == 0);
        s.claim(p.factor >= MANY_STAGES * tile * MANY_ROW + (s.mutant ? 16 : 0));
        s.claim(p.slice >=
                p.factor + MANY_STAGES * many_factor(MANY_GROUPS, 0, eights) * 2);
        s.claim(p.score >= p.slice +
                               many_slice(MANY_STAGES - 1, MANY_TEAMS - 1, 2 * eights - 1,
                                          ATTEND_SLICES - 1, 31, eights) *
                                   16 +
                               16);
        s.claim(p.score >= p.q + attend_row(MANY_HEADS, MANY_DIM) * 2);
        s.claim(p.row >= p.score + attend_row_f32(MANY_HEADS, cap) * 4);
        s.claim(p.tops >= p.row + cap * 8);
        s.claim(p.by >= p.tops + MANY_TEAMS * eights * MANY_HEADS * 4);
        s.claim(p.bytes >= p.by + MANY_HEADS * 4);
        s.claim(p.keys % 16 == 0 && p.factor % 4 == 0 && p.slice % 16 == 0 &&
                p.q % 16 == 0 && p.score % 16 == 0 && p.row % 8 == 0);
        s.claim(many_factor(1, 0, eights) * 2 % 4 == 0);
        s.claim(attend_row_f32(1, cap) * 4 % 16 == 0); /* of weights for ldmatrix */
        s.claim(many_factor(MANY_GROUPS, 0, eights) * 2 % 16 == 0);
    }
    s.claim(Int(MANY_ROW) % 16 == 0);
}

/* Each key of a tile is loaded by one warp, each of its bytes by one lane, from inside the packed
 * row. */
void
tile_loaded(const Config &, Statement &s)
{
    const auto lane = s.two("lane", 0, 31), piece = s.two("piece", 0, MANY_WIDE - 1);
    const Int byte = s.any("byte", 0, MANY_NOPE + MANY_WIDE * 16 - 1);
    const Int row = Int(kv_row_bytes(MANY_DIM, MANY_DIM - MANY_NOPE));
    const Int from = byte - MANY_NOPE;

    for (int eights = 1; eights <= TOP_EIGHTS; eights++) {
        const std::string n = std::to_string(eights);
        const auto warp = s.two("warp" + n, 0, WARPS - 1);
        const auto t = s.two("t" + n, 0, eights - 1), u = s.two("u" + n, 0, 1);
        const Int key = s.any("key" + n, 0, 32 * eights - 1);

        s.alone(many_load(warp.x, t.x, eights) + u.x,
                many_load(warp.y, t.y, eights) + (s.mutant ? 0 : u.y),
                warp.x == warp.y && t.x == t.y && u.x == u.y);
        s.claim(many_load(warp.x, t.x, eights) + u.x < many_tile(eights));
        s.claim(many_load(key / (2 * eights), key / 2 % eights, eights) + key % 2 == key);
        s.claim(many_load(warp.x, t.x, eights) == many_load(warp.x, 0, eights) + 2 * t.x);
    }
    s.claim(implies(lane.x < MANY_UNITS && lane.y < MANY_UNITS && lane.x != lane.y,
                    lane.x * 16 + 16 <= lane.y * 16 || lane.y * 16 + 16 <= lane.x * 16));
    s.claim(implies(lane.x < MANY_UNITS, lane.x * 16 + 16 <= many_wide(0, 0)));
    s.claim(implies(piece.x != piece.y,
                    many_wide(0, piece.x) + 16 <= many_wide(0, piece.y) ||
                        many_wide(0, piece.y) + 16 <= many_wide(0, piece.x)));
    s.claim(many_wide(0, piece.x) + 16 <= many_key(1));
    s.claim(implies(byte < MANY_NOPE, byte / 16 < MANY_UNITS));
    s.claim(implies(byte >= MANY_NOPE,
                    many_wide(0, from / 16) + from % 16 == byte && from / 16 < MANY_WIDE));
    /* where from: pieces as they lie, scales at the end of what the other lanes load */
    s.claim(implies(lane.x < 2 * MANY_WIDE,
                    many_behind(lane.x) == many_wide(0, lane.x % MANY_WIDE)));
    s.claim(many_behind(lane.x) % 8 == 0 && many_behind(lane.x) + 16 <= row);
    s.claim(implies(lane.x >= 2 * MANY_WIDE,
                    many_behind(lane.x) + 8 ==
                        Int(key_scale(key_parts_of(MANY_DIM, MANY_NOPE), 0))));
    s.claim(Int(MANY_GROUPS) <= MANY_WIDE && MANY_UNITS * 16 == MANY_NOPE);
}

/* Factors, slices and largest scores have one lane's places each. */
void
handed_once(const Config &, Statement &s)
{
    const auto lane = s.two("lane", 0, 31), stage = s.two("stage", 0, MANY_STAGES - 1),
               team = s.two("team", 0, MANY_TEAMS - 1),
               slice = s.two("slice", 0, ATTEND_SLICES - 1),
               group = s.two("group", 0, MANY_GROUPS - 1), i = s.two("i", 0, 1);

    for (int eights = 1; eights <= TOP_EIGHTS; eights++) {
        const std::string n = std::to_string(eights);
        const auto of = s.two("of" + n, 0, 2 * eights - 1);
        const auto key = s.two("key" + n, 0, 32 * eights - 1);
        const auto place = [&](Int st, Int te, Int o, Int sl, Int la) {
            return many_slice(st, te, o, sl, la, eights);
        };
        const auto top = [&](Int te, Int o, Int la, Int at) {
            return (te * eights + o / 2) * MANY_HEADS + o % 2 * ATTEND_HEADS +
                   mma_row(la / 4 * 4, 2 * at);
        };

        s.alone(place(stage.x, team.x, of.x, slice.x, lane.x),
                place(stage.y, team.y, of.y, s.mutant ? slice.x : slice.y, lane.y),
                stage.x == stage.y && team.x == team.y && of.x == of.y &&
                    slice.x == slice.y && lane.x == lane.y);
        s.claim(place(stage.x, team.x, of.x, slice.x, lane.x) ==
                place(stage.x, 0, 0, 0, 0) + place(0, team.x, 0, slice.x, lane.x) +
                    place(0, 0, of.x, 0, 0));
        s.alone(many_factor(group.x, key.x, eights), many_factor(group.y, key.y, eights),
                group.x == group.y && key.x == key.y);
        s.claim(many_factor(group.x, key.x, eights) < many_factor(MANY_GROUPS, 0, eights));
        s.alone(top(team.x, of.x, lane.x, i.x), top(team.y, of.y, lane.y, i.y),
                team.x == team.y && of.x == of.y && lane.x / 4 == lane.y / 4 && i.x == i.y);
        s.claim(top(team.x, of.x, lane.x, i.x) < MANY_TEAMS * eights * MANY_HEADS);
    }
}

/* Each score of a tile is one lane's: eights of keys of teams, 16 heads of two groups. */
void
scores_once(const Config &, Statement &s)
{
    const auto lane = s.two("lane", 0, 31), i = s.two("i", 0, 3),
               team = s.two("team", 0, MANY_TEAMS - 1);
    const Int head = s.any("head", 0, MANY_HEADS - 1);

    for (int eights = 1; eights <= TOP_EIGHTS; eights++) {
        const std::string n = std::to_string(eights);
        const auto of = s.two("of" + n, 0, 2 * eights - 1);
        const Int key = s.any("key" + n, 0, 32 * eights - 1), eight = key / 8;
        const auto at = [&](Int te, Int o, Int la, Int e) {
            return (many_eight(te, o / 2, eights) + mma_col(la, e)) * MANY_HEADS +
                   o % 2 * ATTEND_HEADS + mma_row(la, s.mutant ? e % 2 : e);
        };

        s.alone(at(team.x, of.x, lane.x, i.x), at(team.y, of.y, lane.y, i.y),
                team.x == team.y && of.x == of.y && lane.x == lane.y && i.x == i.y);
        s.claim(many_eight(team.x, of.x / 2, eights) + 8 <= many_tile(eights));
        s.claim(many_eight(eight / eights, eight % eights, eights) + key % 8 == key);
        s.claim(many_eight(team.x, of.x / 2, eights) ==
                many_eight(team.x, 0, eights) + of.x / 2 * 8);
    }
    s.claim(head / ATTEND_HEADS * ATTEND_HEADS + head % ATTEND_HEADS == head);
}

/* What lanes hand to ldmatrix is inside a key, aligned, and of the scale that it is multiplied by:
 * for scores a slice's chunks, for values a warp's dims. */
void
fragments_inside(const Config &, Statement &s)
{
    const Int lane = s.any("lane", 0, 31), warp = s.any("warp", 0, WARPS - 1);
    const Int slice = s.any("slice", 0, ATTEND_SLICES - 1), i = s.any("i", 0, 1) * 2;
    const Int u = s.any("u", 0, 1), end = MANY_NOPE + MANY_WIDE * 16;
    const int chunks = MANY_DIM / 32 / ATTEND_SLICES;
    const Int code = slice * 32 + lane / 16 * 32 * ATTEND_SLICES + lane / 8 % 2 * 16 +
                     i * 32 * ATTEND_SLICES;
    const Int dim = slice * 32 + (i + u) * 32 * ATTEND_SLICES; /* of a chunk */
    const Bool wide = i + u == chunks - 1 && slice >= 2;
    const Int piece = MANY_NOPE + (slice - 2) * 64 + quad_at(lane, 8) * 2;
    const Int d = warp * 32, value = d + quad_at(lane, 16) * 2;
    const Int wide_value = MANY_NOPE + (d - MANY_NOPE) * 2 + quad_at(lane, 16) * 2;

    s.claim(code % 16 == 0 && code + 16 <= end);
    s.claim(implies(lane / 16 == u, code >= dim && code + 16 <= dim + 32));
    s.claim(implies(!wide, dim + 32 <= MANY_NOPE + (s.mutant ? -32 : 0)));
    s.claim(implies(!wide, dim / 64 == slice / 2 + (i + u) * (ATTEND_SLICES / 2) &&
                               (dim + 31) / 64 == dim / 64));
    s.claim(
        implies(wide, (dim - MANY_NOPE) * 2 + MANY_NOPE == MANY_NOPE + (slice - 2) * 64 &&
                          piece >= MANY_NOPE && piece % 16 == 0 && piece + 16 <= end));
    s.claim(implies(d < MANY_NOPE, value % 16 == 0 && value + 16 <= d + 32 &&
                                       d + 32 <= MANY_NOPE && (d + 31) / 64 == d / 64));
    s.claim(implies(d >= MANY_NOPE, wide_value >= MANY_NOPE && wide_value % 16 == 0 &&
                                        wide_value + 32 + 16 <= end));
    s.claim(d + 32 <= MANY_DIM);
}

/* Slots of a ring behind one of them are those of the positions behind it. */
void
slots_follow(const Config &k, Statement &s)
{
    const int slots = (int)k.c.window + 16;
    const Int first = s.any("first", 0, Int(k.c.max_positions));
    const Int i = s.any("i", 0, slots - 1);

    s.claim(many_slot(first % slots, i + (s.mutant ? 1 : 0), slots) ==
            Int(ring_slot(first + i, slots)));
}

/* What stage a tile or its slices are in is what counts here: that lanes which fill one have places
 * of their own is tile-loaded, handed-once and scores-once, so that they do not meet (ATOMIC). */
void
put_keys(Thread &x, Int j)
{
    x.use_in(j % MANY_STAGES, "keys", ATOMIC, 0);
    x.use("row", READ, x.any("one", 0, MOST_KEYS));
}

void
multiply(Thread &x, Int j)
{
    x.use_in(j % MANY_STAGES, "keys", READ, 0);
    x.use_in(j % MANY_STAGES, "slice", ATOMIC, 0);
    x.use("memory", READ, 0); /* where queries were */
}

void
add_slices(Thread &x, Int j)
{
    x.use_in(j % MANY_STAGES, "slice", READ, 0);
    x.use("score", ATOMIC, 0);
    x.use("memory", READ, 0);
}

Int
tile_of(Thread &x)
{
    return x.turn("k", 0, MOST_KEYS / 32);
}

/* Of a lane's two heads: in bytes, as weights come where scores were. */
Int
head_of(Thread &x)
{
    return x.warp() + x.any("head", 0, 1) * WARPS;
}

} // namespace

std::vector<Kernel>
attend_many_stages()
{
    return {
        {"gpu/cuda/attend_many.cu",
         "all_scores",
         "first_tile query_slice { | add_up put_slice put_two } | add_up put_tops",
         {"first_tile", "query_slice", "add_up", "put_slice", "put_two", "put_tops"},
         512,
         nullptr,
         0,
         {[](const Config &, Thread &x) {
              put_keys(x, 0);
              x.use_in(x.any("q", 0, MANY_HEADS - 1), "q", READ,
                       x.any("e", 0, MANY_DIM - 1));
              x.use("memory", ATOMIC, 0);
          },
          [](const Config &, Thread &x) {
              const Int j = tile_of(x);

              multiply(x, j);
              add_slices(x,
                         j + (MANY_STAGES - 1)); /* of the tile before: the other stage */
              put_keys(x, j + 1);
          },
          [](const Config &, Thread &x) {
              add_slices(x, x.any("last", 0, MOST_KEYS / 32));
              x.use("tops", ATOMIC, 0);
          }},
         false,
         true},
        {"gpu/cuda/attend_many.cu",
         "weigh_two",
         "{ { score . score . } }",
         {"score"},
         512,
         "weigh_two",
         0,
         {[](const Config &, Thread &x) {
              x.use("score", READ, 0);
              x.use_in(head_of(x), "weights", READ, x.any("key", 0, MOST_KEYS) * 4, 4);
          },
          [](const Config &, Thread &x) {
              x.use_in(head_of(x), "weights", WRITE,
                       (x.lane() + x.any("round", 0, MOST_KEYS / 32) * 32) * 2, 2);
          }}},
        {"gpu/cuda/attend_many.cu",
         "all_weights",
         "tops score weigh_two() by",
         {"tops", "score", "by"},
         512,
         nullptr,
         0,
         {[](const Config &, Thread &x) {
              x.use("tops", READ, 0);
              x.use("score", READ, 0);
          },
          [](const Config &, Thread &x) {
              x.use("by", WRITE, x.warp() + x.lane() / 8 % 2 * WARPS, 1,
                    x.lane() == 0 || x.lane() == 8);
          }}},
        {"gpu/cuda/attend_many.cu",
         "all_values",
         "first_tile { | put_two values_of_16 }",
         {"first_tile", "values_of_16", "put_two"},
         512,
         nullptr,
         0,
         {[](const Config &, Thread &x) { put_keys(x, 0); },
          [](const Config &, Thread &x) {
              const Int j = tile_of(x);

              x.use_in(j % MANY_STAGES, "keys", READ, 0);
              put_keys(x, j + 1);
              x.use_in(x.any("h", 0, MANY_HEADS - 1), "weights", READ,
                       x.any("key", 0, MOST_KEYS) * 2, 2);
          }},
         false,
         true},
        {"gpu/cuda/attend_many.cu",
         "attend_many_kernel",
         "find_keys put_queries | all_scores() | all_weights() all_values() put_all",
         {"find_keys", "put_queries", "put_all"},
         512,
         "attend_many_kernel",
         1,
         {[](const Config &, Thread &x) {
              const Int i = x.t + x.any("round", 0, 3) * 512;

              x.use("row", WRITE, x.t + x.any("turn", 0, MOST_KEYS / 512) * 512);
              x.use_in(piece_row(i, MANY_DIM / 8), "q", WRITE, piece_at(i, MANY_DIM / 8, 8),
                       8);
              x.use("memory", ATOMIC, 0);
          },
          [](const Config &, Thread &x) {
              x.use("by", READ, x.any("h", 0, MANY_HEADS - 1));
          }}},
    };
}

const std::vector<Obligation> attend_many = {
    {"many", "plan-is-apart", "parts of shared memory are disjoint, aligned", false,
     plan_is_apart},
    {"many", "tile-loaded", "each byte of a tile is one lane's, from inside its key", false,
     tile_loaded},
    {"many", "handed-once", "slices, factors and largest scores are one lane's", false,
     handed_once},
    {"many", "scores-once", "each score of a tile is one lane's", false, scores_once},
    {"many", "fragments-inside", "lanes' fragments are inside a key, under its scale",
     false, fragments_inside},
    {"many", "slots-follow", "keys of a window are in the slots of their positions", true,
     slots_follow},
};

} // namespace verify
