/* SPDX-License-Identifier: Apache-2.0 */
/* Stages (stages.cc) of products. */
#include "verify/formulas.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

namespace
{

enum { NORM_CHUNKS = 8 };

/* Rows of x: of these widths. */
std::vector<int>
widths(const Config &k)
{
    return {k.c.hidden, k.c.moe_inter, k.c.q_lora_rank};
}

std::string
staged(int dim)
{
    return "staged" + std::to_string(dim);
}

/* Chunks of few rows, by warps in turn. */
struct RowChunk {
    Int row, k, at;
    Bool there;
};

RowChunk
row_chunk(Thread &x, int dim)
{
    const int chunks = (dim + ROW_CHUNK - 1) / ROW_CHUNK;
    const std::string n = std::to_string(dim);
    const Int r = x.any("row" + n, 0, PACK_N), c = x.any("chunk" + n, 0, chunks - 1);
    const Int at = chunk_at(c, x.lane());

    return {r, c, at, r < PACK_N && at < dim && (r * chunks + c) % PACK_WARPS == x.warp()};
}

/* Sums of a block, for columns of 8 rows and tiles at a time. */
struct Form {
    int nt, mt;
};

constexpr Form forms[] = {{1, 1}, {2, 2}, {4, 2}};

std::string
sums(Form f)
{
    return "sums" + std::to_string(f.nt);
}

/* Lines of sums are apart (packed, sums-apart). */
void
write_sums(const Config &, Thread &x)
{
    for (const Form f : forms) {
        const Int m = x.any("m", 0, f.mt - 1), n = x.any("n", 0, f.nt - 1);
        const Int low = packed_sum(x.warp(), f.mt, 1, m, mma_row(x.lane(), 0), 0);

        for (const Int line : {low, low + 8})
            x.use_in(line, sums(f), WRITE, n * PACK_N + mma_col(x.lane(), 0), 2);
    }
}

/* Runs of rows that many products share (packed_many.cuh), in one half of the memory, by pieces of 16
 * bytes; where these are, and that they are found again: packed, runs-staged. */
enum { PIECES = 8 * 512 / 8 /* 8 rows of 512 inputs, at most */ };

void
stage_run(Thread &x, Int half)
{
    const Int piece = x.t + x.any("piece", 0, PIECES / 256 - 1) * 256;

    x.use_in(half, "run", WRITE, piece);
}

void
read_run(Thread &x, Int half)
{
    x.use_in(half, "run", READ, x.any("any", 0, PIECES - 1));
}

} // namespace

void
read_sums(const Config &, Thread &x)
{
    for (const Form f : forms)
        x.use_in(x.any("at", 0, PACK_WARPS * f.mt * PACK_M - 1), sums(f), READ,
                 x.any("column", 0, f.nt * PACK_N - 1));
}

std::vector<Kernel>
packed_stages()
{
    return {
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
        {"gpu/cuda/packed_inputs.cuh",
         "norm_rows",
         "squares staged | squares staged |",
         {"staged"},
         256,
         "norm_rows",
         0,
         {[](const Config &k, Thread &x) {
              const int dim = k.c.q_lora_rank;
              const RowChunk c = row_chunk(x, dim);

              x.use("squares", WRITE, c.row * NORM_CHUNKS + c.k, 1,
                    c.there && x.lane() == 0);
              x.use_in(c.row, staged(dim), WRITE, c.at, ROW_PIECE, c.there);
          },
          [](const Config &k, Thread &x) {
              const int dim = k.c.q_lora_rank, chunks = (dim + ROW_CHUNK - 1) / ROW_CHUNK;
              const RowChunk c = row_chunk(x, dim);

              x.use("squares", READ, c.row * NORM_CHUNKS + x.any("k", 0, chunks - 1));
              x.use_in(c.row, staged(dim), WRITE, c.at, ROW_PIECE, c.there);
          }},
         true},
        {"gpu/cuda/packed_x.cuh",
         "stage_x",
         "to |",
         {"to"},
         256,
         nullptr,
         0,
         {[](const Config &k, Thread &x) {
             for (const int dim : widths(k)) {
                 const RowChunk c = row_chunk(x, dim);

                 x.use_in(c.row, staged(dim), WRITE, c.at, ROW_PIECE, c.there);
             }
         }}},
        {"gpu/cuda/packed_x.cuh", "ready", "( stage_x() )", {}, 256, nullptr, 0, {}},
        {"gpu/cuda/packed.cuh",
         "tiles_times",
         "ready() row",
         {"row"},
         256,
         nullptr,
         0,
         {[](const Config &k, Thread &x) {
             for (const int dim : widths(k))
                 x.use_in(x.any("line", 0, PACK_N - 1), staged(dim), READ,
                          x.any("any", 0, dim - 1));
         }}},
        {"gpu/cuda/packed.cuh",
         "block_parts",
         "tiles_times() shared |",
         {"shared"},
         256,
         nullptr,
         0,
         {write_sums}},
    };
}

std::vector<Kernel>
products_stages()
{
    return {
        {"gpu/cuda/packed.cuh",
         "block_product",
         "shared block_parts() shared |",
         {"shared"},
         256,
         "block_parts",
         0,
         {nothing, read_sums},
         true},
        {"gpu/cuda/packed.cu",
         "any_kind",
         "block_product() shared block_product() shared block_product() shared",
         {"shared"},
         256,
         nullptr,
         0,
         {nothing, nothing, nothing}},
        {"gpu/cuda/packed.cu",
         "packed_kernel",
         "shared ( side() shared ) ( block_product() shared / any_kind() shared )",
         {"shared"},
         256,
         "norm_rows",
         1,
         {nothing, nothing, nothing, nothing},
         false,
         false,
         {{"ready", "norm_rows"}, {"side", "inputs_part"}}},
        {"gpu/cuda/packed_many.cuh",
         "run",
         "multiply stage_rows",
         {"multiply", "stage_rows"},
         256,
         nullptr,
         0,
         {[](const Config &, Thread &x) {
             const Int half = x.turn("k", 0, 1);

             read_run(x, half);
             stage_run(x, 1 - half);
         }}},
        {"gpu/cuda/packed_many.cuh",
         "many_product",
         "stage_rows { | ( run() / run() ) } |",
         {"stage_rows"},
         256,
         "many_product",
         0,
         {[](const Config &, Thread &x) { stage_run(x, 0); }},
         true},
    };
}

} // namespace verify
