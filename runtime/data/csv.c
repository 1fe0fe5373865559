/* csv.c: one record of a CSV file (RFC 4180). Commas separate fields, line ends (LF or CRLF) separate records; a field in double
 * quotes may contain commas, line ends and doubled quotes.
 *
 * It is stricter than many: a quote inside a field that does not start with one, text after a closing quote, and a record with
 * more or fewer fields than the header are errors, because they mean that the file does not say what its author thinks. After an
 * error in the quoting, the next line is taken as the start of the next record. */
#include "data/rows.h"
#include <stdio.h>
#include <string.h>

static bool bad(char *why, const char *reason)
{
    snprintf(why, LR_ROW_WHY, "not valid CSV: %s", reason);
    return false;
}

/* The next quote in a quoted field; checks the UTF-8 before it. NULL: an error at *at, with its reason in why. */
static const char *quoted_run(const char *p, const char *end, const char **at, char *why)
{
    for (;;) {
        while (end - p >= 8) {
            const uint64_t w = lr_bytes_load(p);
            if (((w & LR_BYTE_HIGHS) | lr_bytes_equal(w, '"') | lr_bytes_equal(w, 0)) != 0)
                break;
            p += 8;
        }
        while (p < end && (signed char)*p > 0 && *p != '"')
            p++;
        if (p < end && *p == '"')
            return p;
        const int length = p < end ? lr_utf8_sequence(p, end) : 0;
        if (p == end || *p == 0 || length == 0) {
            bad(why, p == end ? "a quoted field is not closed" : *p == 0 ? "a NUL byte" : "bytes that are not UTF-8");
            *at = p;
            return NULL;
        }
        p += length;
    }
}

/* The end of an unquoted field: a comma, a line end, the end of the file, or a byte that is not allowed. */
static const char *plain_run(const char *p, const char *end)
{
    while (p < end) {
        if ((signed char)*p > 0) {
            if (*p == ',' || *p == '"' || *p == '\n' || *p == '\r')
                return p;
            p++;
        } else {
            const int length = *p == 0 ? 0 : lr_utf8_sequence(p, end);
            if (length == 0)
                return p;
            p += length;
        }
    }
    return p;
}

bool lr_csv_field(const char **at, const char *end, lr_cell *field, bool *more, char *why)
{
    const char *p = *at;
    const bool quoted = p < end && *p == '"';
    field->kind = LR_JSON_STRING;
    field->escaped = false;
    if (quoted) {
        field->text = ++p;
        while ((p = quoted_run(p, end, at, why)) != NULL && end - p >= 2 && p[1] == '"') {
            field->escaped = true;
            p += 2;
        }
        if (p == NULL)
            return false;
        field->size = p++ - field->text;
    } else {
        field->text = p;
        p = plain_run(p, end);
        field->size = p - field->text;
    }
    *at = p;
    *more = p < end && *p == ',';
    if (p == end)
        return true;
    if (*p == ',' || *p == '\n') {
        *at = p + 1;
        return true;
    }
    if (*p == '\r' && (p + 1 == end || p[1] == '\n')) {
        *at = p + 1 == end ? end : p + 2;
        return true;
    }
    if (*p == '\r')
        return bad(why, "a carriage return without a line feed (convert line ends with dos2unix, or quote the field)");
    if (quoted)
        return bad(why, "text after the closing quote of a field (a quote inside a quoted field is written twice)");
    if (*p == '"')
        return bad(why, "a quote inside an unquoted field (put the field in quotes and write the inner quote twice)");
    return bad(why, *p == 0 ? "a NUL byte" : "bytes that are not UTF-8");
}

static const char *line_after(const char *p, const char *end)
{
    const char *newline = p < end ? memchr(p, '\n', (size_t)(end - p)) : NULL;
    return newline != NULL ? newline + 1 : end;
}

static bool blank(const char *p, const char *end, const char **next)
{
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\r'))
        p++;
    *next = p < end ? p + 1 : end;
    return p == end || *p == '\n';
}

static bool check_cell(const char *name, int kind, lr_cell *cell, char *why)
{
    if (kind == LR_COLUMN_TEXT)
        return true;
    const char *p = cell->text, *end = p + cell->size;
    while (p < end && (*p == ' ' || *p == '\t'))
        p++;
    while (p < end && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    cell->kind = LR_JSON_NUMBER;
    if (!cell->escaped && lr_decimal(p, end - p, &cell->number))
        return true;
    if (p == end)
        snprintf(why, LR_ROW_WHY, "column '%s' is not a number (it is empty)", name);
    else
        snprintf(why, LR_ROW_WHY, "column '%s' is not a finite number (it is \"%.*s\")", name,
                 (int)lr_min64(end - p, 40), p);
    return false;
}

lr_row_state lr_csv_row(const lr_schema *schema, const char *p, const char *end, const char **next, lr_cell *cells,
                        char *why)
{
    if (blank(p, end, next))
        return LR_ROW_BLANK;
    /* Do not look further than the longest row: a quote that is never closed must not cost a walk over the whole file. The 8 bytes
     * more are for the line end and for a character that the limit would cut. */
    const char *limit = end - p > LR_ROW_BYTES + 8 ? p + LR_ROW_BYTES + 8 : end, *at = p;
    int fields = 0;
    for (bool ok = true, more = true; more; fields++) {
        const int column = fields < schema->fields ? schema->wanted[fields] : -1;
        lr_cell ignored;
        ok = lr_csv_field(&at, limit, column >= 0 ? &cells[column] : &ignored, &more, why);
        const int64_t line_end = !ok || more || at[-1] != '\n' ? 0 : at - p > 1 && at[-2] == '\r' ? 2 : 1;
        if (at - p - line_end > LR_ROW_BYTES) {
            snprintf(why, LR_ROW_WHY, "the row has more than %d bytes (is a quote not closed?)", LR_ROW_BYTES);
            ok = false;
        }
        if (!ok) {
            *next = line_end > 0 ? at : line_after(at, end);
            return LR_ROW_BAD;
        }
    }
    *next = at;
    if (fields != schema->fields) {
        snprintf(why, LR_ROW_WHY, "the row has %d %s, the header has %d", fields, fields == 1 ? "field" : "fields",
                 schema->fields);
        return LR_ROW_BAD;
    }
    for (int c = 0; c < schema->columns; c++)
        if (!check_cell(schema->names[c], schema->kinds[c], &cells[c], why))
            return LR_ROW_BAD;
    return LR_ROW_GOOD;
}

int64_t lr_csv_decode(const lr_cell *cell, char *buf, int64_t cap)
{
    const char *p = cell->text, *end = p + cell->size;
    int64_t size = 0;
    while (p < end) {
        const char *quote = cell->escaped ? memchr(p, '"', (size_t)(end - p)) : NULL;
        const int64_t run = (quote != NULL ? quote + 1 : end) - p;
        if (size < cap)
            memcpy(buf + size, p, (size_t)lr_min64(run, cap - size));
        size += run;
        p += run + (quote != NULL); /* skip the second of two quotes */
    }
    return size;
}
