/* rows.h: what the readers of JSON Lines (jsonl.c) and CSV (csv.c) have in common, and what data sets and the loader
 * share.
 *
 * A reader walks one row at a time over bytes that are not NUL-terminated and belong to a memory-mapped file. It never
 * allocates and never reports an error itself: it says GOOD, BLANK or BAD, and why, since which row was the first bad
 * one is known only after all threads have come home.
 *
 * Invariants
 *   - A cell points into the file: it is valid as long as the mapping.
 *   - A row is GOOD only where every byte of it was checked: syntax, UTF-8, each wanted column present and of its kind.
 */
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

/* One value as it stands in the file, without its quotes. */
typedef struct lr_cell {
    const char *text;
    int64_t size;
    int32_t kind; /* an lr_json_kind; -1: not in this row */
    bool escaped; /* it must be decoded; else its bytes are the value */
    double number;
} lr_cell;

/* The columns a caller wants, and where a CSV file has them. */
typedef struct lr_schema {
    int columns;
    char **names;
    int *kinds;  /* lr_column_kind */
    int fields;  /* CSV: fields of the header */
    int *wanted; /* CSV: column of each field, or -1 */
} lr_schema;

/* Read the row that starts at p; the file ends at end. *next is where the following row starts. cells[columns] is
 * filled where the row is GOOD, why[LR_ROW_WHY] where it is BAD. */
typedef lr_row_state lr_row_reader(const lr_schema *schema, const char *p, const char *end, const char **next,
                                   lr_cell *cells, char *why);
/* Write at most cap bytes of a cell's decoded text, return its whole length. */
typedef int64_t lr_cell_decoder(const lr_cell *cell, char *buf, int64_t cap);

lr_row_reader lr_jsonl_row, lr_csv_row;
lr_cell_decoder lr_jsonl_decode, lr_csv_decode;

/* The keys of a row that is well-formed, in turn: start with *p at the row; false after the last. */
bool lr_jsonl_key(const char **p, const char *end, lr_cell *key);
/* The next field of a CSV record. *more: another one follows. false: malformed, why tells; *p is where. */
bool lr_csv_field(const char **p, const char *end, lr_cell *field, bool *more, char *why);

/* ---- rows.c ------------------------------------------------------------------------------------------------------ */
/* A finite decimal number that fills text exactly (optional sign, digits, fraction, exponent); false where it is none.
 */
bool lr_decimal(const char *text, int64_t size, double *out);
/* Append a name to a list for a message, "a, b", cut with "..." where it would grow beyond cap. */
void lr_name_append(char *list, size_t cap, const char *name, size_t size);

/* Eight bytes at once. lr_bytes_equal and lr_bytes_below mark, by their high bits, the bytes that are c or below c (c
 * <= 0x80); bytes above the first true one may be marked falsely, so only "any or none" is to be asked. */
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
