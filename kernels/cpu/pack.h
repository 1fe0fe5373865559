/* pack.h: operands of lr_tile_product out of rows in memory.
 *
 * A source is rows of f32 or bf16, any distance apart. Their elements become words: f32, widened where they are bf16,
 * or pairs of bf16 neighbours along the depth. The depth of a product runs either across the rows of a source or down
 * them:
 *   across   lr_pack_across transposes words into panels, whose columns are the rows
 *   down     lr_pack_down keeps the rows, or interleaves them two by two as pairs
 * Rows that lie far apart are fetched LR_ROWS_AHEAD of their use, for no processor guesses where the next one is. */
#ifndef LR_CPU_PACK_H
#define LR_CPU_PACK_H

#include "cpu/tile.h"

enum { LR_ROWS_AHEAD = 48 };

typedef struct lr_source {
    const char *data; /* the first element */
    int64_t stride;   /* bytes from one row to the next */
    int dtype;        /* LR_F32 or LR_BF16 */
    bool pairs;       /* words are pairs; else f32 */
} lr_source;

/* The source that starts at an element of a tensor's memory. */
static inline lr_source lr_source_of(const lr_tensor *t, int64_t element, bool pairs)
{
    return (lr_source){lr_at(t, element), t->ld * (t->dtype == LR_F32 ? 4 : 2), t->dtype, pairs};
}

static inline const char *lr_source_at(const lr_source *s, int64_t row, int64_t column)
{
    return s->data + row * s->stride + column * (s->dtype == LR_F32 ? 4 : 2);
}

/* Words that n elements along a depth take; the last may be half of a pair. */
static inline int64_t lr_words_of(bool pairs, int64_t n)
{
    return pairs ? (n + 1) / 2 : n;
}

/* Bytes of a row that one word is made of, where the depth runs across. */
static inline int64_t lr_word_bytes(const lr_source *s)
{
    return s->dtype == LR_F32 || s->pairs ? 4 : 2;
}

/* The n words at `at`, then zeros. */
static inline lr_vec lr_source_words(const lr_source *s, const char *at, int64_t n)
{
    return s->dtype == LR_BF16 && !s->pairs ? lr_vec_widen_first(at, n) : lr_vec_load_first(at, n);
}

/* Fetch row i + LR_ROWS_AHEAD, of which `bytes` are wanted. */
static inline void lr_source_fetch(const lr_source *s, int64_t i, int64_t n, int64_t bytes)
{
    if (i + LR_ROWS_AHEAD < n)
        for (int64_t b = 0; b < bytes; b += 64)
            __builtin_prefetch(s->data + (i + LR_ROWS_AHEAD) * s->stride + b);
}

/* n rows of the source, `words` deep, as they are: to[i * ld + d]. The words of a row are rounded up to whole vectors. */
static inline void lr_pack_rows(lr_word *to, int64_t ld, const lr_source *s, int64_t n, int64_t words)
{
    for (int64_t i = 0; i < n; i++) {
        lr_source_fetch(s, i, n, words * lr_word_bytes(s));
        for (int64_t d = 0; d < words; d += LR_LANES)
            lr_vec_store(to + i * ld + d,
                         lr_source_words(s, s->data + i * s->stride + d * lr_word_bytes(s), words - d));
    }
}

/* Panels whose columns are n rows of the source, `words` deep: panel p is [words][LR_PANEL] at p * words * LR_PANEL.
 * Columns beyond n are zero up to a whole vector. */
static inline void lr_pack_across(lr_word *panels, const lr_source *s, int64_t n, int64_t words)
{
    for (int64_t first = 0; first < n; first += LR_LANES) {
        lr_word *to = panels + first / LR_PANEL * words * LR_PANEL + first % LR_PANEL;
        for (int64_t i = first; i < lr_min64(n, first + LR_LANES); i++)
            lr_source_fetch(s, i, n, words * lr_word_bytes(s));
        for (int64_t d = 0; d < words; d += LR_LANES) {
            lr_vec v[LR_LANES];
            for (int i = 0; i < LR_LANES; i++)
                v[i] = first + i < n
                           ? lr_source_words(s, s->data + (first + i) * s->stride + d * lr_word_bytes(s), words - d)
                           : (lr_vec){0};
            lr_transpose(v);
            for (int i = 0; i < lr_min64(LR_LANES, words - d); i++)
                lr_vec_store(to + (d + i) * LR_PANEL, v[i]);
        }
    }
}

/* n rows of `width` columns, the depth down the rows: word i of column c goes to to[c / LR_PANEL * panel_stride + i *
 * row_stride + c % LR_PANEL], which are panels, or, with a panel_stride of LR_PANEL, rows for a left operand read down
 * its columns. Columns beyond width are zero up to a whole vector. */
static inline void lr_pack_down(lr_word *to, int64_t panel_stride, int64_t row_stride, const lr_source *s, int64_t n,
                                int64_t width)
{
    for (int64_t i = 0; i < n; i += s->pairs ? 2 : 1, to += row_stride) {
        lr_source_fetch(s, i, n, width * (s->dtype == LR_F32 ? 4 : 2));
        if (s->pairs)
            lr_source_fetch(s, i + 1, n, 2 * width);
        for (int64_t c = 0; c < width; c += LR_PANEL) {
            lr_word *panel = to + c / LR_PANEL * panel_stride;
            const char *from = lr_source_at(s, i, c);
            if (s->pairs)
                lr_interleave(panel, from, i + 1 < n ? from + s->stride : NULL, lr_min64(LR_PANEL, width - c));
            else
                for (int64_t j = 0; j < lr_min64(LR_PANEL, width - c); j += LR_LANES)
                    lr_vec_store(panel + j, lr_source_words(s, lr_source_at(s, i, c + j), width - c - j));
        }
    }
}

#endif
