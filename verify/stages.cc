/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stages of shared memory: what threads do between two barriers. Of two accesses to one place that
 * no barrier stands between, by different threads, none may write. The table below has, for each
 * kernel, its barriers as scan.hh reads them from the source (`prove --stages` compares), and what
 * each thread does in each stage, in the formulas that the kernel has. Which stages may meet
 * follows from the barriers, round loops and past branches; the mutant leaves one barrier out.
 *
 * Threads of a warp wait for each other at all barriers, those of a block at two kinds, those of a
 * cluster at one. An array that one call hands to another has one name here.
 */
#include "verify/stages.hh"
#include "verify/formulas.hh"
#include "verify/prove.hh"

namespace verify
{

using namespace formula;

namespace
{

void
nothing(const Config &, Thread &)
{
}

/* A warp's terms: a lane writes its own of two slots, each of two eights of heads, or reads. */
void
terms(Thread &x, How how, Int slot)
{
    const Int at = (slot * 2 + x.any("u", 0, 1)) * (CHOOSE_TERMS * 4);

    if (how == WRITE)
        x.use_in(x.warp(), "term", how, at + choose_term(x.lane() / 4, x.lane() % 4) * 4,
                 4);
    else
        x.use_in(x.warp(), "term", how,
                 at + choose_term(x.lane() / 4, x.any("pair", 0, 3)) * 4 + x.lane() % 4);
}

/* Pairs of one stride are disjoint (rows, butterflies-once); here they are anywhere, and only what
 * comes before and behind them counts. */
void
butterflies(Thread &x, const char *array, int dim, int threads)
{
    x.use(array, ATOMIC, x.any("i", 0, dim - 1), 1, x.t < threads);
}

/* Element t + n threads of a row. */
template <int THREADS>
Int
own(Thread &x, int dim)
{
    return x.t + x.any("round", 0, dim / THREADS) * THREADS;
}

/* Groups by warps in turn, elements by lanes. */
void
groups(Thread &x, const char *array, int dim, int group, int warps)
{
    const Int g = x.warp() + x.any("g", 0, dim / group / warps) * warps;
    const Int i = g * group + x.lane() + x.any("m", 0, group / 32 - 1) * 32;

    x.use(array, READ, i, 1, i < dim);
}

/* sublayer_input: 8 columns a thread of 256 at a time. */
void
input_row(const Config &k, Thread &x, How how)
{
    const Int at = x.t + x.any("at", 0, k.c.hidden / 8 / 256) * 256;

    x.use("mixed", how, at * 8, 8, at < k.c.hidden / 8);
}

/* All that one warp does with comb: elements by lanes, lines read whole. */
enum { COMB = 64 /* 8 streams */ };

void
comb_all(const Config &, Thread &x)
{
    x.use("comb", READ, x.any("i", 0, COMB - 1), 1, x.t < 32);
}

void
comb_own(const Config &, Thread &x)
{
    x.use("comb", WRITE, x.t + x.any("round", 0, 1) * 32, 1, x.t < 32);
}

void
comb_out(const Config &, Thread &x)
{
    x.use("comb", READ, x.t + x.any("round", 0, 1) * 32, 1, x.t < 32);
}

/* Channels of an entry by threads, then all of them by the first warp: pieces of 8. */
void
entry_own(const Config &k, Thread &x)
{
    x.use("v", WRITE, own<256>(x, k.c.head_dim));
}

void
entry_piece(const Config &k, Thread &x, How how)
{
    const Int at = chunk_at(x.any("n", 0, k.c.head_dim / ROW_CHUNK), x.lane());

    x.use("v", how, at, ROW_PIECE, x.t < 32 && at < k.c.head_dim);
}

/* Chunks of few rows, by warps in turn. */
enum { NORM_CHUNKS = 8 };

struct RowChunk {
    Int row, k, place;
    Bool there;
};

RowChunk
row_chunk(const Config &k, Thread &x)
{
    const int dim = k.c.q_lora_rank, chunks = (dim + ROW_CHUNK - 1) / ROW_CHUNK;
    const Int i = x.warp() + x.any("item", 0, chunks) * PACK_WARPS;
    const Int at = chunk_at(i % chunks, x.lane());

    return {i / chunks, i % chunks, packed_x(i / chunks, dim) + at,
            i < PACK_N * chunks && at < dim};
}

/* A tile of keys of attend.cu: a warp's keys, 8 bytes of codes or 4 elements a lane. */
void
attend_tile(const Config &k, Thread &x)
{
    const int codes = (k.c.head_dim - k.c.rope_dim) / 8, words = codes + k.c.rope_dim / 4;
    const Int key = x.warp() + x.any("key", 0, ATTEND_PIECE / 16 - 1) * 16;
    const Int at = x.lane() + x.any("word", 0, 2) * 32, place = attend_element(at, codes);

    x.use_in(key, "tile", WRITE, place, 8, at < codes);
    x.use_in(key, "tile", WRITE, place, 4, at >= codes && at < words);
}

void
attend_tile_read(const Config &k, Thread &x)
{
    x.use_in(x.any("line", 0, ATTEND_PIECE - 1), "tile", READ,
             x.any("e", 0, k.c.head_dim - 1));
}

void
attend_values(const Config &k, Thread &x)
{
    attend_tile_read(k, x);
    x.use_in(x.any("head", 0, 15), "p", READ, x.any("weight", 0, 1 << 20));
}

/* One of a warp's heads, of either group; and where this block's word on it goes. */
Int
attend_head(Thread &x)
{
    return x.any("group", 0, 1) * ATTEND_HEADS + x.warp();
}

Int
attend_told(Thread &x)
{
    return attend_sent(x.rank, attend_head(x), 2 * ATTEND_HEADS);
}

void
attend_queries_read(const Config &k, Thread &x)
{
    x.use_in(x.any("head", 0, 2 * ATTEND_HEADS - 1), "q", READ,
             x.any("e", 0, k.c.head_dim - 1));
    attend_tile_read(k, x);
    x.use("memory", ATOMIC, 0);
}

/* Pairs of dims to the block that adds them up, where queries and slices were ("memory": either the
 * one or the other). */
void
attend_send(const Config &k, Thread &x)
{
    const int dim = k.c.head_dim, tiles = (dim / 8 + 15) / 16, dims = dim / ATTEND_PARTS;
    const Int c = attend_dims(x.warp(), tiles, x.any("t", 0, tiles - 1)) +
                  mma_col(x.lane(), 0);
    const Int h = x.turn("low", 0, 1) * ATTEND_HEADS +
                  mma_row(x.lane(), x.any("i", 0, 1) * 2);

    x.uses.push_back({"in", WRITE, c % dims, 2, c < dim, c / dims,
                      attend_sent(x.rank, h, 2 * ATTEND_HEADS)});
    x.use_of(c / dims, "memory", READ, 0, c < dim);
}

/* Queries beside the tile; slices of scores. */
void
attend_put(const Config &k, Thread &x)
{
    attend_tile(k, x);
    x.use_in(attend_head(x), "q", WRITE,
             2 * (x.lane() + x.any("pair", 0, k.c.head_dim / 64 - 1) * 32), 2);
    x.use("memory", ATOMIC, 0);
}

void
attend_slices(const Config &k, Thread &x)
{
    const Int i = x.any("i", 0, 1) * 2;
    const Int t8 = x.warp() / 4 + x.any("t8", 0, (ATTEND_PIECE + 31) / 32 - 1) * 4;

    attend_queries_read(k, x);
    x.use_in(x.warp() % 4 * ATTEND_HEADS + mma_row(x.lane(), i), "slice", WRITE,
             t8 * 8 + mma_col(x.lane(), 0), 2);
}

enum { CAP = 4096 /* keys of a part: any */ };

const std::vector<Kernel> kernels = {
    {"gpu/cuda/device.cuh",
     "block_sum",
     "| part | part",
     {},
     1024,
     "block_sum",
     0,
     {[](const Config &, Thread &x) { x.use("part", WRITE, x.warp(), 1, x.lane() == 0); },
      [](const Config &, Thread &x) { x.use("part", READ, x.lane()); }},
     true},
    {"gpu/cuda/inputs.cu",
     "query_row",
     "squares | squares",
     {},
     256,
     "query_row",
     0,
     {[](const Config &k, Thread &x) {
          x.use("squares", WRITE, x.warp() + x.any("k", 0, k.c.q_lora_rank / ROW_CHUNK) * 8,
                1, x.lane() == 0);
      },
      [](const Config &k, Thread &x) {
          x.use("squares", READ, x.any("k", 0, k.c.q_lora_rank / ROW_CHUNK));
      }}},
    {"gpu/cuda/inputs.cuh",
     "index_pack",
     "{ . h } . h",
     {"h"},
     256,
     "index_pack",
     1,
     {[](const Config &k, Thread &x) { butterflies(x, "v", k.c.index_head_dim, 32); },
      [](const Config &k, Thread &x) {
          x.use("v", READ, x.any("g", 0, k.c.index_head_dim / 32 - 1) * 32 + x.lane(), 1,
                x.t < 32);
      }}},
    {"gpu/cuda/inputs.cuh",
     "pool",
     "part | part v",
     {"v"},
     256,
     "pool",
     0,
     {[](const Config &, Thread &x) { x.use("part", WRITE, x.t * 4, 4); },
      [](const Config &k, Thread &x) {
          x.use("part", READ, x.any("i", 0, 4 * 256 - 1));
          entry_own(k, x);
      }}},
    {"gpu/cuda/inputs.cuh",
     "finish_entry",
     "pool() v | v index_pack() v",
     {"v"},
     256,
     "finish_entry",
     0,
     {nothing,
      [](const Config &k, Thread &x) {
          entry_piece(k, x, READ);
          entry_piece(k, x, WRITE);
      },
      nothing}},
    {"gpu/cuda/packed_inputs.cuh",
     "norm_rows",
     "squares staged | squares staged |",
     {"staged"},
     256,
     "norm_rows",
     0,
     {[](const Config &k, Thread &x) {
          const RowChunk c = row_chunk(k, x);

          x.use("squares", WRITE, c.row * NORM_CHUNKS + c.k, 1, x.lane() == 0);
          x.use("staged", WRITE, c.place, ROW_PIECE, c.there);
      },
      [](const Config &k, Thread &x) {
          const int chunks = (k.c.q_lora_rank + ROW_CHUNK - 1) / ROW_CHUNK;
          const RowChunk c = row_chunk(k, x);

          x.use("squares", READ, c.row * NORM_CHUNKS + x.any("k", 0, chunks - 1));
          x.use("staged", WRITE, c.place, ROW_PIECE, c.there);
      }},
     true},
    {"gpu/cuda/quant.cu",
     "index_quant_kernel",
     "h { | h } | h",
     {},
     64,
     "index_quant_kernel",
     1,
     {[](const Config &k, Thread &x) {
          x.use("h", WRITE, own<64>(x, k.c.index_head_dim), 1, true);
      },
      [](const Config &k, Thread &x) { butterflies(x, "h", k.c.index_head_dim, 64); },
      [](const Config &k, Thread &x) { groups(x, "h", k.c.index_head_dim, 32, 2); }}},
    {"gpu/cuda/sample.cu",
     "block_found",
     "part | part",
     {},
     512,
     "block_found",
     0,
     {[](const Config &, Thread &x) { x.use("part", WRITE, x.warp(), 1, x.lane() == 0); },
      [](const Config &, Thread &x) { x.use("part", READ, x.lane() % 16); }}},
    {"gpu/cuda/sample.cu",
     "sum_before",
     "| part | part",
     {},
     512,
     "sum_before",
     0,
     {[](const Config &, Thread &x) { x.use("part", WRITE, x.warp(), 1, x.lane() == 31); },
      [](const Config &, Thread &x) { x.use("part", READ, x.any("i", 0, 15)); }},
     true},
    {"gpu/cuda/sample.cu",
     "weigh",
     "part | part | part sum_before() |",
     {},
     512,
     "weigh",
     1,
     {nothing,
      [](const Config &, Thread &x) { x.use("sums", WRITE, x.warp(), 1, x.lane() == 0); },
      [](const Config &, Thread &x) {
          x.use("sums", READ, x.lane() % 16, 1, x.warp() == 0);
      }}},
    {"gpu/cuda/linear.cu",
     "block_outputs",
     "( | shared | shared )",
     {},
     256,
     "block_outputs",
     0,
     {[](const Config &, Thread &x) {
          x.use("shared", WRITE, x.warp() * 8, 8, x.lane() == 0);
      },
      [](const Config &, Thread &x) { /* of a split of 2 at least: even warps */
                                      x.use("shared", READ,
                                            (x.warp() + x.any("w", 1, 7)) * 8 +
                                                x.any("r", 0, 7),
                                            1, x.warp() % 2 == 0);
      }},
     true},
    {"gpu/cuda/mhc.cu",
     "normalise",
     ". c . c",
     {"c"},
     512,
     "normalise",
     1,
     {comb_all, comb_own},
     true},
    {"gpu/cuda/mhc.cu",
     "sinkhorn",
     ". c . c . c . c normalise() c { normalise() c normalise() c } .",
     {"c"},
     512,
     "sinkhorn",
     2,
     {comb_all, comb_own, comb_all, comb_own, nothing, nothing, nothing}},
    {"gpu/cuda/mhc.cu",
     "coefficients",
     "comb pre sinkhorn() comb",
     {"pre"},
     512,
     "sinkhorn",
     0,
     {[](const Config &k, Thread &x) {
          x.use("pre", WRITE, x.t, 1, x.t < k.c.hc_mult);
          comb_own(k, x);
      },
      comb_out}},
    {"gpu/cuda/mhc.cu",
     "hc_pre_kernel",
     "block_sum() ( coefficients() pre ) | pre",
     {},
     512,
     "hc_pre_kernel",
     0,
     {nothing, [](const Config &k,
                  Thread &x) { x.use("pre", READ, x.any("i", 0, k.c.hc_mult - 1)); }}},
    {"gpu/cuda/streams.cuh",
     "divide_lines",
     ". c . c",
     {"c"},
     512,
     "divide_lines",
     1,
     {comb_all, comb_own},
     true},
    {"gpu/cuda/streams.cuh",
     "sinkhorn_shared",
     ". c . c divide_lines() c divide_lines() c { divide_lines() c divide_lines() c } .",
     {"c"},
     512,
     "sinkhorn_shared",
     1,
     {comb_all, comb_own, nothing, nothing, nothing, nothing}},
    {"gpu/cuda/streams.cuh",
     "way_back",
     "m | m comb sinkhorn_shared() comb",
     {},
     512,
     "way_back",
     0,
     {[](const Config &k, Thread &x) {
          const int hc = k.c.hc_mult, n = hc + hc * hc + 1;
          const Int o = x.warp() + x.any("o", 0, n / 16) * 16;

          x.use("m", WRITE, o + hc, 1, x.lane() == 0 && o < n);
      },
      [](const Config &k, Thread &x) {
          const int hc = k.c.hc_mult;

          x.use("m", READ, x.any("i", hc, 2 * hc + hc * hc), 1, x.t < 32);
          comb_own(k, x);
      },
      comb_out}},
    {"gpu/cuda/streams.cuh",
     "sublayer_input",
     "m | m squares mixed | squares mixed",
     {"mixed"},
     256,
     "sublayer_input",
     1,
     {[](const Config &k, Thread &x) {
          const int n = k.c.hc_mult + 1;
          const Int o = x.warp() + x.any("o", 0, n / 8) * 8;

          x.use("m", WRITE, o, 1, x.lane() == 0 && o < n);
      },
      [](const Config &k, Thread &x) {
          x.use("m", READ, x.any("o", 0, k.c.hc_mult));
          input_row(k, x, WRITE);
          x.use("squares", WRITE, x.warp() + x.any("turn", 0, 7) * 8, 1, x.lane() == 0);
      },
      [](const Config &k, Thread &x) {
          x.use("squares", READ, x.lane() + x.any("half", 0, 1) * 32);
          input_row(k, x, WRITE); /* it may be keep's */
      }}},
    {"gpu/cuda/streams.cu",
     "streams_mix_kernel",
     "{ x | x | }",
     {},
     256,
     "streams_mix_kernel",
     1,
     {[](const Config &, Thread &x) { x.use("x", WRITE, x.t); },
      [](const Config &, Thread &x) { x.use("x", READ, x.any("r", 0, 7) * 32 + x.lane()); },
      nothing}},
    {"gpu/cuda/moe.cu",
     "assign",
     "before { { . before . before } } | before of_warp | of_warp start | before start",
     {},
     512,
     "assign",
     2,
     {[](const Config &, Thread &x) {
          x.use_in(x.warp(), "before", WRITE, x.lane() + x.any("i", 0, 15) * 32);
      },
      [](const Config &, Thread &x) {
          x.use_in(x.warp(), "before", READ, x.any("id", 0, 511));
      },
      [](const Config &, Thread &x) { /* one of the lanes that have this id */
                                      x.use_in(x.warp(), "before", ATOMIC,
                                               x.any("id", 0, 511));
      },
      [](const Config &, Thread &x) {
          x.use_in(x.any("w", 0, 15), "before", WRITE, x.t);
          x.use("of_warp", WRITE, x.warp(), 1, x.lane() == 31);
      },
      [](const Config &, Thread &x) {
          const Int w = x.any("w", 0, 31);

          x.use("of_warp", READ, w, 1, w < x.warp());
          x.use("start", WRITE, x.t);
      },
      [](const Config &, Thread &x) {
          x.use_in(x.warp(), "before", READ, x.any("id", 0, 511));
          x.use("start", READ, x.any("id", 0, 511));
      }}},
    {"gpu/cuda/attention.cu",
     "score_kernel",
     "s { | s | s }",
     {"s"},
     256,
     "score_kernel",
     1,
     {[](const Config &, Thread &x) { x.use("row", WRITE, x.t, 1, x.t < 32); },
      [](const Config &, Thread &x) {
          const Int i = x.t + x.any("round", 0, 7) * 256;
          const Int line = piece_row(i, 64), c = piece_at(i, 64, 4);

          x.use("row", READ, line);
          x.use("key", WRITE, line * 260 + c, 4);
          x.use("q", WRITE, line * 256 + c, 4);
      },
      [](const Config &, Thread &x) {
          const Int c = x.any("c", 0, 63) * 4;

          x.use("key", READ, x.lane() * 260 + c, 4);
          x.use("q", READ, (x.warp() * 4 + x.any("i", 0, 3)) * 256 + c, 4);
      }}},
    {"gpu/cuda/attention.cu",
     "value_kernel",
     "{ | p row | p row }",
     {},
     128,
     "value_kernel",
     0,
     {[](const Config &, Thread &x) {
          const Int i = x.t + x.any("round", 0, 1) * 128;

          x.use("p", WRITE, Int(piece_at(i, 32, 1)) * 8 + piece_row(i, 32));
          x.use("row", WRITE, x.t, 1, x.t < 32);
      },
      [](const Config &, Thread &x) {
          x.use("p", READ, x.any("k", 0, 255));
          x.use("row", READ, x.any("r", 0, 31));
      }}},
    {"gpu/cuda/index.cu",
     "index_score_kernel",
     "key ks q qs term w | key ks q qs term w | term",
     {"key", "ks", "q", "qs", "term", "w"},
     256,
     "index_score_kernel",
     1,
     {[](const Config &, Thread &x) { /* apart: index, unpack-covers */
                                      for (const char *array : {"q", "key", "qs", "ks"})
                                          x.use(array, ATOMIC, x.any("i", 0, 1 << 10));
                                      x.use("w", WRITE, x.t);
      },
      [](const Config &k, Thread &x) {
          const int heads = k.c.index_n_heads;
          const Int h = x.any("h", 0, heads - 1), part = x.t / SCORE_KEYS;

          for (const char *array : {"q", "key", "qs", "ks"})
              x.use(array, READ, x.any("i", 0, 1 << 10));
          x.use("w", READ, x.any("i", 0, 1 << 10));
          x.use_in(h, "term", WRITE, x.t % SCORE_KEYS, 1,
                   h >= score_head(part, heads) && h < score_head(part + 1, heads));
      },
      [](const Config &k, Thread &x) {
          x.use_in(x.any("h", 0, k.c.index_n_heads - 1), "term", READ, x.t % SCORE_KEYS, 1,
                   x.t < SCORE_KEYS);
      }}},
    {"gpu/cuda/index.cu",
     "topk_kernel",
     "{ count | count | cls count rank | cls } { above equal | above equal rank | }",
     {},
     1024,
     "topk_kernel",
     2,
     {[](const Config &, Thread &x) { x.use("count", WRITE, x.t, 1, x.t < 256); },
      [](const Config &, Thread &x) { x.use("count", ATOMIC, x.any("class", 0, 255)); },
      [](const Config &, Thread &x) {
          x.use("count", READ, x.any("class", 0, 255), 1, x.t == 0);
          for (const char *array : {"cls", "rank"})
              x.use(array, WRITE, 0, 1, x.t == 0);
      },
      [](const Config &, Thread &x) { x.use("cls", READ, 0); },
      [](const Config &, Thread &x) {
          x.use("above", WRITE, x.warp(), 1, x.lane() == 0);
          x.use("equal", WRITE, x.warp(), 1, x.lane() == 0);
      },
      [](const Config &, Thread &x) {
          x.use("above", READ, x.any("w", 0, 31));
          x.use("equal", READ, x.any("w", 0, 31));
          x.use("rank", READ, 0);
      }}},
    {"gpu/cuda/choose.cu",
     "score_keys",
     "from to . { from last to . } from",
     {"to", "from", "last"},
     256,
     nullptr,
     0,
     {[](const Config &, Thread &x) { terms(x, WRITE, 0); },
      [](const Config &, Thread &x) {
          const Int slot = x.turn("k", 0, 1);

          terms(x, READ, 1 - slot);
          terms(x, WRITE, slot);
      },
      [](const Config &, Thread &x) { terms(x, READ, x.any("slot", 0, 1)); }}},
    {"gpu/cuda/choose.cu",
     "scores_kernel",
     "q weight | { { score_keys() q weight . } }",
     {"q", "weight"},
     256,
     "scores_kernel",
     0,
     {[](const Config &k, Thread &x) {
          x.use_in(x.warp() + x.any("round", 0, k.c.index_n_heads * 16) * 8, "q", WRITE,
                   x.lane());
          x.use("weight", WRITE, x.t);
      },
      [](const Config &, Thread &x) {
          x.use_in(x.any("line", 0, 1 << 20), "q", READ, x.any("i", 0, 31));
          x.use("weight", READ, x.any("h", 0, 1 << 20));
      }}},
    {"gpu/cuda/choose.cu",
     "send_counts",
     "| to wide ||",
     {"to", "wide"},
     1024,
     nullptr,
     0,
     {[](const Config &, Thread &x) {
         for (const How how : {READ, WRITE})
             x.use("wide", how,
                   choose_counter_read(x.t / 4, x.t % 4 + x.any("i", 0, 7) * 4));
         x.use_of(x.t % 4 + x.any("r", 0, CHOOSE_PARTS / 4 - 1) * 4, "count", WRITE,
                  (x.turn("low", 0, 1) * CHOOSE_PARTS + x.rank) * 256 + x.t / 4, true);
     }}},
    {"gpu/cuda/choose.cu",
     "find_class",
     "count sum | found sum |",
     {"count", "found"},
     1024,
     nullptr,
     0,
     {[](const Config &, Thread &x) {
          x.use("count", READ,
                (x.turn("low", 0, 1) * CHOOSE_PARTS + x.any("r", 0, CHOOSE_PARTS - 1)) *
                        256 +
                    x.t,
                1, x.t < 256);
          x.use("sum", WRITE, x.warp(), 1, x.t < 256 && x.lane() == 0);
      },
      [](const Config &, Thread &x) {
          x.use("sum", READ, x.any("i", 0, 7), 1, x.t < 256);
          x.use("found", ATOMIC, 0, 2, x.t < 256); /* the one that has the class */
      }}},
    {"gpu/cuda/choose.cu",
     "topk_cluster_kernel",
     "front wide || { wide send_counts() wide find_class() found } front front_equal total | "
     "front front_equal total",
     {"wide"},
     1024,
     "topk_cluster_kernel",
     0,
     {[](const Config &, Thread &x) {
          x.use("wide", WRITE, (x.t + x.any("i", 0, 1) * 1024) * 4, 4);
          x.use("front", WRITE, x.t, 1, x.t < 32);
      },
      [](const Config &, Thread &x) {
          x.use("wide", ATOMIC, choose_counter(x.any("class", 0, 255), x.lane()));
      },
      nothing, [](const Config &, Thread &x) { x.use("found", READ, 0, 2); },
      [](const Config &, Thread &x) {
          x.use("front", WRITE, x.warp(), 1, x.lane() == 0 && x.t < 256);
          x.use("total", WRITE, x.warp(), 1, x.lane() == 31);
          x.use("front_equal", ATOMIC, 0, 1, x.t < 256); /* the one that has the class */
      },
      [](const Config &, Thread &x) {
          x.use("front", READ, x.lane());
          x.use("total", READ, x.lane());
          x.use("front_equal", READ, 0);
      }},
     false,
     true},
    {"gpu/cuda/attend.cu",
     "attend_kernel",
     "den in p q rest score slice tile tops || q tile { ( | tile ) | ( q score tile / q slice "
     "tile | score slice ) } | score tops || den p rest score tops | { { { { ( | tile | ) p "
     "tile } } in } } || den in rest",
     {"q", "tile", "slice", "score", "p", "in", "den", "tops", "rest"},
     512,
     "attend_kernel",
     9,
     {attend_tile, attend_put, attend_tile,
      [](const Config &k, Thread &x) {
          const Int t8 = x.warp() / 2 + x.any("t8", 0, ATTEND_TILE / 64 - 1) * 8;
          const Int i = x.any("i", 0, 3);

          attend_queries_read(k, x);
          x.use_in(x.warp() % 2 * ATTEND_HEADS + mma_row(x.lane(), i), "score", WRITE,
                   x.turn("k", 0, CAP / ATTEND_TILE) * ATTEND_TILE + t8 * 8 +
                       mma_col(x.lane(), i));
      },
      attend_slices,
      [](const Config &, Thread &x) {
          const Int i = x.lane() + x.any("round", 0, ATTEND_TILE / 32 - 1) * 32;

          x.use_in(x.any("slice", 0, 3) * ATTEND_HEADS + x.warp(), "slice", READ, i);
          x.use("memory", ATOMIC, 0);
          x.use_in(x.warp(), "score", WRITE,
                   x.turn("k", 0, CAP / ATTEND_TILE) * ATTEND_TILE + i);
      },
      [](const Config &, Thread &x) {
          x.use_in(attend_head(x), "score", READ, x.any("key", 0, CAP - 1));
          x.use_of(x.lane(), "tops", WRITE, attend_told(x), x.lane() < ATTEND_PARTS);
      },
      [](const Config &, Thread &x) {
          /* another part is a part away, or more */
          const Int part = x.s.any("part", 1, CAP / 16) * 16;
          const Int other = x.s.any("other", 0, CAP), h = attend_head(x);
          const Int at = x.lane() + x.any("round", 0, CAP / 32 - 1) * 32;
          const Int key = at + choose(x.any("one", 0, 1) == 0, Int(0), part + other);

          x.use("tops", READ, x.any("told", 0, ATTEND_PARTS * 2 * ATTEND_HEADS - 1));
          x.use_in(h, "score", READ, x.any("key", 0, CAP - 1));
          x.use_in(h, "p", WRITE, key, 1, at < part);
          x.use_of(x.lane(), "den", WRITE, attend_told(x), x.lane() < ATTEND_PARTS);
          x.use("rest", WRITE, h, 1, x.lane() == 0);
      },
      attend_tile, attend_values, attend_send,
      [](const Config &k, Thread &x) {
          x.use_in(x.any("line", 0, ATTEND_PARTS * 2 * ATTEND_HEADS - 1), "in", READ,
                   x.any("c", 0, k.c.head_dim - 1));
          x.use("memory", READ, 0);
          x.use("den", READ, x.any("one", 0, ATTEND_PARTS * 2 * ATTEND_HEADS - 1));
          x.use("rest", READ, x.any("h", 0, 31));
      }}},
    {"gpu/cuda/attend_long.cu",
     "long_scores_kernel",
     "q slice tile | q slice tile | slice",
     {"q", "tile", "slice"},
     512,
     "long_scores_kernel",
     1,
     {attend_put, attend_slices,
      [](const Config &, Thread &x) {
          x.use_in(x.any("slice", 0, 3) * ATTEND_HEADS + x.warp(), "slice", READ,
                   x.any("key", 0, ATTEND_PIECE - 1));
      }}},
    {"gpu/cuda/attend_long.cu",
     "long_values_kernel",
     "p tile | p tile",
     {"p", "tile"},
     512,
     "long_values_kernel",
     0,
     {[](const Config &k, Thread &x) {
          attend_tile(k, x);
          x.use_in(x.warp(), "p", WRITE,
                   x.lane() + x.any("round", 0, ATTEND_PIECE / 32) * 32);
      },
      attend_values}},
};

} // namespace

const std::vector<Obligation> stages = meetings_of(kernels);

bool
check_stages(const std::string &sources)
{
    return same_barriers(kernels, sources);
}

} // namespace verify
