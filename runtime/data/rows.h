/* rows.h: the readers of rows, JSON Lines (jsonl.c) and CSV (csv.c), for data sets.
 *
 * A reader walks over one row of a memory-mapped file; the bytes are not NUL-terminated. It never allocates and never reports an
 * error itself: it returns GOOD, BLANK or BAD and the reason, because the first bad row is known only when all threads have
 * ended.
 *
 * Invariants
 *   - A cell points into the file: it is valid as long as the mapping.
 *   - A GOOD row has been checked whole: its syntax, UTF-8, and that each wanted column is there and of its kind. */
#ifndef LR_ROWS_H
#define LR_ROWS_H

#include "core/core.h"
#include "core/utf8.h"

enum {
    LR_ROW_BYTES = 16 << 20, /* longest row */
    LR_ROW_COLUMNS = 64,     /* most columns wanted from a file */
    LR_ROW_NAME = 128,       /* longest name of a wanted column, with its NUL */
    LR_ROW_DEPTH = 256,      /* deepest nesting of a JSON value */
    LR_ROW_WHY = 512         /* bytes of a reason, with its NUL */
};

typedef enum lr_row_state { LR_ROW_GOOD = 0, LR_ROW_BLANK = 1, LR_ROW_BAD = 2 } lr_row_state;

/* One value as the file has it, without its quotes. */
typedef struct lr_cell {
    const char *text;
    int64_t size;
    int32_t kind; /* an lr_json_kind; -1: not in this row */
    bool escaped; /* it has escapes to decode; else its bytes are the value */
    double number;
} lr_cell;

/* The columns that a caller wants, and where a CSV file has them. */
typedef struct lr_schema {
    int columns;
    char **names;
    int *kinds;  /* lr_column_kind */
    int fields;  /* CSV: fields of the header */
    int *wanted; /* CSV: column of each field, or -1 */
} lr_schema;

/* Read the row that starts at p; the file ends at end. *next is where the next row starts. cells[columns] is filled for a GOOD row,
 * why[LR_ROW_WHY] for a BAD one. */
typedef lr_row_state lr_row_reader(const lr_schema *schema, const char *p, const char *end, const char **next,
                                   lr_cell *cells, char *why);
/* Write at most cap bytes of a cell's decoded text, return its whole length. */
typedef int64_t lr_cell_decoder(const lr_cell *cell, char *buf, int64_t cap);

lr_row_reader lr_jsonl_row, lr_csv_row;
lr_cell_decoder lr_jsonl_decode, lr_csv_decode;

/* The next key of a well-formed row. Start with *p at the row; false after the last key. */
bool lr_jsonl_key(const char **p, const char *end, lr_cell *key);
/* The next field of a CSV record. *more: another one follows. false: it is malformed at *p, for the reason in why. */
bool lr_csv_field(const char **p, const char *end, lr_cell *field, bool *more, char *why);

/* ---- rows.c ------------------------------------------------------------------------------------------------------ */
/* The value of text, all of which must be a finite decimal number (optional sign, digits, fraction, exponent); else false. */
bool lr_decimal(const char *text, int64_t size, double *out);
/* Append a name to a list for a message, "a, b". A list that would be longer than cap ends with "...". */
void lr_name_append(char *list, size_t cap, const char *name, size_t size);

/* Eight bytes at once. lr_bytes_equal and lr_bytes_below set the high bit of each byte that is c, or below c (c <= 0x80). Bytes
 * above the first such byte may be marked wrongly, so the result only tells whether there is any. */
#define LR_BYTE_ONES 0x0101010101010101ull
#define LR_BYTE_HIGHS 0x8080808080808080ull
static inline uint64_t lr_bytes_load(const char *p)
{
    uint64_t w;
    __builtin_memcpy(&w, p, sizeof w);
    return w;
}
static inline uint64_t lr_bytes_equal(uint64_t w, unsigned char c)
{
    const uint64_t x = w ^ (LR_BYTE_ONES * c);
    return (x - LR_BYTE_ONES) & ~x & LR_BYTE_HIGHS;
}
static inline uint64_t lr_bytes_below(uint64_t w, unsigned char c)
{
    return (w - LR_BYTE_ONES * c) & ~w & LR_BYTE_HIGHS;
}

#endif
