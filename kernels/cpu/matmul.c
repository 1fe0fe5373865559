/* matmul.c: plain matrix products, c = alpha a b + beta c with either operand transposed, of any mix of f32 and bf16.
 *
 * They are LoRA's and the losses'. LoRA's have a rank among their three sizes: such a product moves as much as it
 * computes, so operands are packed a piece at a time, just before they are multiplied, and c is written once.
 *
 * An item of work is a block of c: up to ROWS rows and COLUMNS columns, its sums in f32 in scratch. The depth is walked
 * in steps of DEPTH words, always the same ones, so neither the number of threads nor the cut into items changes a bit.
 * Two bf16 operands are multiplied as pairs where the instruction set can; everything else is multiplied as f32. */
#include "cpu/pack.h"
#include <omp.h>

/* A panel of DEPTH words is half of the first-level cache. Rows of an operand that is read down its columns, and of the
 * sums, lie DOWN_ROW and SUMS_ROW apart: odd numbers of cache lines, so that they do not all fall into a few sets. */
enum { DEPTH = 192, ROWS = 192, COLUMNS = 384, DOWN_ROW = ROWS + 16, SUMS_ROW = COLUMNS + 16 };

/* Words of scratch of a thread: rows of a, panels of b, sums. */
enum { PER_THREAD = DEPTH * DOWN_ROW + DEPTH * COLUMNS + ROWS * SUMS_ROW };

typedef struct product {
    int64_t m, n, k, words; /* words: of the whole depth */
    bool pairs, in_place;   /* in_place: the rows of a are operands as they lie */
    bool a_down, b_down;    /* the depth runs down the rows of the operand's tensor, not across them */
    lr_source a, b;
    const lr_tensor *c;
    float alpha, beta;
    int64_t rows, columns; /* of an item */
} product;

typedef struct item {
    int64_t row, rows, column, columns;
} item;

/* The part of an operand that begins at row or column `at` of c and element `depth` of the depth. */
static inline lr_source part_of(const lr_source *s, bool down, int64_t at, int64_t depth)
{
    lr_source part = *s;
    part.data = down ? lr_source_at(s, depth, at) : lr_source_at(s, at, depth);
    return part;
}

/* c = alpha sums + beta c for some rows of an item. */
static void finish_rows(const product *p, int64_t row, int64_t rows, int64_t column, int64_t columns, const float *sums)
{
    for (int64_t i = 0; i < rows; i++, sums += SUMS_ROW) {
        const int64_t at = (row + i) * p->c->ld + column;
        for (int64_t j = 0; j < columns; j += LR_LANES) {
            lr_vec v = p->alpha * lr_vec_load(sums + j);
            if (p->beta != 0.0f)
                v += p->beta * lr_vec_in(p->c->dtype, lr_at(p->c, at + j), columns - j);
            lr_vec_out(p->c->dtype, lr_at(p->c, at + j), columns - j, v);
        }
    }
}

/* Fetch what finish_rows will write, while the sums are being made. */
static void fetch_rows(const product *p, int64_t row, int64_t rows, int64_t column, int64_t columns)
{
    const int64_t bytes = columns * (int64_t)lr_dtype_size(p->c->dtype);
    for (int64_t i = 0; i < rows; i++) {
        const char *at = lr_at(p->c, (row + i) * p->c->ld + column);
        for (int64_t b = 0; b < bytes; b += 64)
            __builtin_prefetch(at + b, 1);
    }
}

/* A left operand of lr_tile_product. */
typedef struct left {
    const lr_word *words;
    int64_t row_stride, column_stride;
} left;

/* sums (+)= n rows by b's panels; with the last step of the depth, c of those rows. */
static void multiply_rows(const product *p, const item *at, int64_t i, int64_t n, int64_t word, int64_t words,
                          const left *a, const lr_word *panels, float *sums)
{
    const bool last = word + words == p->words;
    if (last)
        fetch_rows(p, at->row + i, n, at->column, at->columns);
    lr_tile_product(p->pairs, n, at->columns, words, a->words, a->row_stride, a->column_stride, panels,
                    words * LR_PANEL, sums, SUMS_ROW, word > 0);
    if (last)
        finish_rows(p, at->row + i, n, at->column, at->columns, sums);
}

/* One step of the depth: all of b's panels, then the rows of a against them. Where there is but one step, a tile of rows
 * meets all panels before the next, so that c is written row by row and its sums need no more room than that; else a
 * panel, which stays in the first-level cache, meets all rows. Whole tiles of rows are read where they lie, if they can
 * be; the others are copied, for a tile reads all of its rows. */
static void product_step(const product *p, const item *at, int64_t word, lr_word *rows, lr_word *panels, float *sums)
{
    const int64_t words = lr_min64(DEPTH, p->words - word), from = p->pairs ? 2 * word : word;
    const int64_t depth = lr_min64(p->pairs ? 2 * words : words, p->k - from);
    const lr_source a = part_of(&p->a, p->a_down, at->row, from), b = part_of(&p->b, p->b_down, at->column, from);
    const int64_t whole = p->in_place ? at->rows / LR_TILE_ROWS * LR_TILE_ROWS : 0;
    const bool once = p->words <= DEPTH;
    if (p->a_down) {
        lr_pack_down(rows, LR_PANEL, DOWN_ROW, &a, depth, at->rows);
    } else {
        const lr_source rest = part_of(&a, false, whole, 0);
        lr_pack_rows(rows, DEPTH, &rest, at->rows - whole, words);
    }
    if (p->b_down)
        lr_pack_down(panels, words * LR_PANEL, LR_PANEL, &b, depth, at->columns);
    else
        lr_pack_across(panels, &b, at->columns, words);
    for (int64_t i = 0, n; i < at->rows; i += n) {
        left operand;
        if (p->a_down)
            operand = (left){rows + i, 1, DOWN_ROW};
        else if (i < whole)
            operand = (left){(const lr_word *)(a.data + i * a.stride), a.stride / 4, 1};
        else
            operand = (left){rows + (i - whole) * DEPTH, DEPTH, 1};
        n = once ? lr_min64(LR_TILE_ROWS, at->rows - i) : i < whole ? whole : at->rows - i;
        multiply_rows(p, at, i, n, word, words, &operand, panels, once ? sums : sums + i * SUMS_ROW);
    }
}

/* Blocks of c, small enough that every thread has one if c has the panels for it. */
static void cut(product *p, int threads)
{
    p->rows = lr_min64(ROWS, lr_round_up((p->m + threads - 1) / threads, LR_ROW_UNIT));
    const int64_t down = (p->m + p->rows - 1) / p->rows, across = (threads + down - 1) / down;
    p->columns = lr_min64(COLUMNS, lr_round_up((p->n + across - 1) / across, LR_PANEL));
}

static int threads_for(const lr_exec *exec, const lr_tensor *c, int64_t k)
{
    return lr_threads_for(exec, c->elements * k / 32 + c->elements);
}

static int64_t product_scratch(const lr_exec *exec, const lr_tensor *c, int64_t k)
{
    return (int64_t)sizeof(lr_word) * PER_THREAD * threads_for(exec, c, k);
}

static int run_product(const lr_exec *exec, const char *op, lr_tensor *c, const lr_tensor *a, bool a_down,
                       const lr_tensor *b, bool b_down, double alpha, double beta)
{
    LR_NEED_CPU_DTYPE(op, c);
    LR_NEED_CPU_DTYPE(op, a);
    LR_NEED_CPU_DTYPE(op, b);
    const int64_t m = c->shape[0], n = c->shape[1], k = a->shape[a_down ? 0 : 1];
    /* across rows, a last pair would have half of itself beyond its row */
    const bool pairs = LR_HAS_PAIRS && a->dtype == LR_BF16 && b->dtype == LR_BF16 && (k % 2 == 0 || (a_down && b_down));
    product p = {.m = m,
                 .n = n,
                 .k = k,
                 .words = lr_words_of(pairs, k),
                 .pairs = pairs,
                 .a_down = a_down,
                 .b_down = b_down,
                 .a = lr_source_of(a, 0, pairs),
                 .b = lr_source_of(b, 0, pairs),
                 .c = c,
                 .alpha = (float)alpha,
                 .beta = (float)beta};
    p.in_place = !a_down && (a->dtype == LR_F32 || pairs) && (uintptr_t)a->data % 4 == 0 && p.a.stride % 4 == 0;
    const int threads = threads_for(exec, c, k);
    cut(&p, threads);
    lr_word *scratch = exec->scratch;
    const int64_t down = (m + p.rows - 1) / p.rows, across = (n + p.columns - 1) / p.columns;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < down * across; i++) {
        const int64_t row = i / across * p.rows, column = i % across * p.columns;
        const item at = {row, lr_min64(p.rows, m - row), column, lr_min64(p.columns, n - column)};
        lr_word *rows = scratch + omp_get_thread_num() * PER_THREAD, *panels = rows + DEPTH * DOWN_ROW;
        for (int64_t word = 0; word < p.words; word += DEPTH)
            product_step(&p, &at, word, rows, panels, (float *)(panels + DEPTH * COLUMNS));
    }
    return LR_OK;
}

int64_t LR_CPU(matmul_nt_scratch)(const lr_exec *exec, const lr_matmul_nt_call *call)
{
    return product_scratch(exec, call->c, call->a->shape[1]);
}

int LR_CPU(matmul_nt)(lr_exec *exec, lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    return run_product(exec, "matmul_nt", c, a, false, b, false, alpha, beta);
}

int64_t LR_CPU(matmul_nn_scratch)(const lr_exec *exec, const lr_matmul_nn_call *call)
{
    return product_scratch(exec, call->c, call->a->shape[1]);
}

int LR_CPU(matmul_nn)(lr_exec *exec, lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    return run_product(exec, "matmul_nn", c, a, false, b, true, alpha, beta);
}

int64_t LR_CPU(matmul_tn_scratch)(const lr_exec *exec, const lr_matmul_tn_call *call)
{
    return product_scratch(exec, call->c, call->a->shape[0]);
}

int LR_CPU(matmul_tn)(lr_exec *exec, lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    return run_product(exec, "matmul_tn", c, a, true, b, true, alpha, beta);
}
