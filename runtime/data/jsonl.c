/* jsonl.c: one row of a JSON Lines file (RFC 8259, one object on each line).
 *
 * A general parser builds a tree. Here each byte of a row is checked once, and the place of each wanted value is noted. Strings,
 * which are nearly all of the bytes, are checked eight bytes at a time as long as they are plain ASCII.
 *
 * It is stricter than many: no NaN or Infinity, no lone surrogates, no nesting deeper than LR_ROW_DEPTH. Of equal keys the last
 * one counts. */
#include "data/rows.h"
#include <stdio.h>
#include <string.h>

typedef struct scan {
    const char *p, *end, *row; /* current position, end of the line, start of the line */
    char *why;
} scan;

static bool bad(const scan *s, const char *reason)
{
    snprintf(s->why, LR_ROW_WHY, "not valid JSON at byte %lld: %s", (long long)(s->p - s->row) + 1, reason);
    return false;
}

static bool line_ended(const scan *s)
{
    return bad(s, "the line ends inside the object (each row must be whole and on one line)");
}

static void skip_space(scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\r' || *s->p == '\n'))
        s->p++;
}

/* One escape, with s->p at its backslash. */
static bool scan_escape(scan *s)
{
    if (s->end - s->p < 2)
        return bad(s, "a string is not closed");
    if (s->p[1] != 'u') {
        if (strchr("\"\\/bfnrt", s->p[1]) == NULL || s->p[1] == 0)
            return bad(s, "an unknown escape after \\ (write \\\\ for a backslash)");
        s->p += 2;
        return true;
    }
    const int unit = s->end - s->p >= 6 ? lr_hex4(s->p + 2) : -1;
    if (unit < 0)
        return bad(s, "\\u needs four hexadecimal digits");
    if (unit >= 0xDC00 && unit <= 0xDFFF)
        return bad(s, "a lone low surrogate (\\uDC00 to \\uDFFF must follow a high one)");
    if (unit < 0xD800 || unit > 0xDBFF) {
        s->p += 6;
        return true;
    }
    const int low = s->end - s->p >= 12 && s->p[6] == '\\' && s->p[7] == 'u' ? lr_hex4(s->p + 8) : -1;
    if (low < 0xDC00 || low > 0xDFFF)
        return bad(s, "a lone high surrogate (\\uD800 to \\uDBFF needs a low one after it)");
    s->p += 12;
    return true;
}

/* A string, with s->p at its opening quote. */
static bool scan_string(scan *s, lr_cell *out)
{
    out->text = ++s->p;
    out->kind = LR_JSON_STRING;
    out->escaped = false;
    for (;;) {
        while (s->end - s->p >= 8) {
            const uint64_t w = lr_bytes_load(s->p);
            if (((w & LR_BYTE_HIGHS) | lr_bytes_equal(w, '"') | lr_bytes_equal(w, '\\') | lr_bytes_below(w, ' ')) != 0)
                break;
            s->p += 8;
        }
        while (s->p < s->end && (signed char)*s->p >= ' ' && *s->p != '"' && *s->p != '\\')
            s->p++;
        if (s->p == s->end)
            return bad(s, "a string is not closed before the end of the line");
        if (*s->p == '"') {
            out->size = s->p++ - out->text;
            return true;
        }
        if (*s->p == '\\') {
            out->escaped = true;
            if (!scan_escape(s))
                return false;
            continue;
        }
        if ((unsigned char)*s->p < ' ')
            return bad(s, "a control character in a string must be escaped");
        do {
            const int length = lr_utf8_sequence(s->p, s->end);
            if (length == 0)
                return bad(s, "bytes that are not UTF-8");
            s->p += length;
        } while (s->p < s->end && (signed char)*s->p < 0);
    }
}

static bool at_digit(const scan *s)
{
    return s->p < s->end && *s->p >= '0' && *s->p <= '9';
}

static bool scan_digits(scan *s, const char *reason)
{
    if (!at_digit(s))
        return bad(s, reason);
    while (at_digit(s))
        s->p++;
    return true;
}

static bool scan_number(scan *s)
{
    s->p += *s->p == '-';
    if (s->p < s->end && *s->p == '0') {
        s->p++;
        if (at_digit(s))
            return bad(s, "a number starts with a superfluous 0");
    } else if (!scan_digits(s, "a number lacks digits (NaN and Infinity are no JSON)")) {
        return false;
    }
    if (s->p < s->end && *s->p == '.') {
        s->p++;
        if (!scan_digits(s, "a number lacks digits after its point"))
            return false;
    }
    if (s->p < s->end && (*s->p == 'e' || *s->p == 'E')) {
        s->p++;
        s->p += s->p < s->end && (*s->p == '+' || *s->p == '-');
        if (!scan_digits(s, "a number lacks digits in its exponent"))
            return false;
    }
    return true;
}

static bool scan_word(scan *s, const char *word, size_t size)
{
    if ((size_t)(s->end - s->p) < size || memcmp(s->p, word, size) != 0)
        return bad(s, "an unknown word (expected true, false or null)");
    s->p += size;
    return true;
}

static bool scan_value(scan *s, lr_cell *out, int depth);

/* After a member or an element: ',' goes on, the closing bracket ends. */
static bool scan_separator(scan *s, char closing, bool *more)
{
    skip_space(s);
    if (s->p == s->end)
        return line_ended(s);
    if (*s->p != ',' && *s->p != closing)
        return bad(s, closing == '}' ? "expected ',' or '}' after a value" : "expected ',' or ']' after a value");
    *more = *s->p++ == ',';
    return true;
}

/* A key and its colon. */
static bool scan_key(scan *s, lr_cell *key)
{
    skip_space(s);
    if (s->p == s->end)
        return line_ended(s);
    if (*s->p != '"')
        return bad(s, "expected a key in double quotes");
    if (!scan_string(s, key))
        return false;
    skip_space(s);
    if (s->p == s->end)
        return line_ended(s);
    if (*s->p != ':')
        return bad(s, "expected ':' after a key");
    s->p++;
    return true;
}

/* An empty object or array, with s->p after its opening bracket. */
static bool scan_empty(scan *s, char closing)
{
    skip_space(s);
    if (s->p == s->end || *s->p != closing)
        return false;
    s->p++;
    return true;
}

static bool skip_container(scan *s, char closing, int depth)
{
    if (depth >= LR_ROW_DEPTH)
        return bad(s, "values are nested too deeply");
    s->p++;
    if (scan_empty(s, closing))
        return true;
    lr_cell ignored;
    for (bool more = true; more;) {
        if (closing == '}' && !scan_key(s, &ignored))
            return false;
        if (!scan_value(s, &ignored, depth + 1) || !scan_separator(s, closing, &more))
            return false;
    }
    return true;
}

static bool scan_value(scan *s, lr_cell *out, int depth)
{
    skip_space(s);
    if (s->p == s->end)
        return line_ended(s);
    const char *start = s->p;
    bool ok;
    switch (*s->p) {
    case '"':
        return scan_string(s, out);
    case '{':
        out->kind = LR_JSON_OBJECT;
        ok = skip_container(s, '}', depth);
        break;
    case '[':
        out->kind = LR_JSON_ARRAY;
        ok = skip_container(s, ']', depth);
        break;
    case 't':
        out->kind = LR_JSON_TRUE;
        ok = scan_word(s, "true", 4);
        break;
    case 'f':
        out->kind = LR_JSON_FALSE;
        ok = scan_word(s, "false", 5);
        break;
    case 'n':
        out->kind = LR_JSON_NULL;
        ok = scan_word(s, "null", 4);
        break;
    default:
        if (*s->p != '-' && !at_digit(s))
            return bad(s, "expected a value (NaN and Infinity are no JSON)");
        out->kind = LR_JSON_NUMBER;
        ok = scan_number(s);
    }
    out->text = start;
    out->size = s->p - start;
    out->escaped = false;
    return ok;
}

static int column_of(const lr_schema *schema, const lr_cell *key)
{
    for (int c = 0; c < schema->columns; c++) {
        const size_t size = strlen(schema->names[c]);
        if (!key->escaped) {
            if ((size_t)key->size == size && memcmp(key->text, schema->names[c], size) == 0)
                return c;
        } else {
            char decoded[LR_ROW_NAME];
            const int64_t n = lr_jsonl_decode(key, decoded, sizeof decoded);
            if ((size_t)n == size && memcmp(decoded, schema->names[c], size) == 0)
                return c;
        }
    }
    return -1;
}

static bool scan_row(scan *s, const lr_schema *schema, lr_cell *cells)
{
    skip_space(s);
    if (*s->p == '[')
        return bad(
            s, "the line starts an array, expected an object {...} on every line (to convert an array: jq -c '.[]')");
    if (*s->p != '{')
        return bad(s, "expected an object {...} on every line");
    s->p++;
    if (!scan_empty(s, '}')) {
        for (bool more = true; more;) {
            lr_cell key, ignored;
            if (!scan_key(s, &key))
                return false;
            const int c = column_of(schema, &key);
            if (!scan_value(s, c >= 0 ? &cells[c] : &ignored, 1) || !scan_separator(s, '}', &more))
                return false;
        }
    }
    skip_space(s);
    return s->p == s->end || bad(s, "something follows the object (each row must be on a line of its own)");
}

bool lr_jsonl_key(const char **p, const char *end, lr_cell *key)
{
    char why[LR_ROW_WHY];
    lr_cell ignored;
    scan s = {*p, end, *p, why};
    skip_space(&s);
    if (s.p == end || (*s.p != '{' && *s.p != ','))
        return false;
    s.p++;
    if (!scan_key(&s, key) || !scan_value(&s, &ignored, 1))
        return false;
    *p = s.p;
    return true;
}

static bool missing(const scan *s, const char *name)
{
    char list[LR_ROW_WHY / 2] = "", text[LR_ROW_WHY / 2];
    lr_cell key;
    for (const char *p = s->row; lr_jsonl_key(&p, s->end, &key);) {
        const int64_t size = lr_jsonl_decode(&key, text, sizeof text);
        lr_name_append(list, sizeof list, text, (size_t)lr_min64(size, sizeof text));
    }
    snprintf(s->why, LR_ROW_WHY, "column '%s' is missing; the row has%s %s", name, *list ? ":" : "",
             *list ? list : "no columns");
    return false;
}

static bool check_cell(const scan *s, const char *name, int kind, lr_cell *cell)
{
    static const char *const kinds[] = {"null", "false", "true", "a number", "a string", "an array", "an object"};
    if (cell->kind < 0)
        return missing(s, name);
    if (cell->kind != (kind == LR_COLUMN_TEXT ? LR_JSON_STRING : LR_JSON_NUMBER)) {
        const bool quoted = kind == LR_COLUMN_NUMBER && cell->kind == LR_JSON_STRING && !cell->escaped &&
                            lr_decimal(cell->text, cell->size, &cell->number);
        snprintf(s->why, LR_ROW_WHY, "column '%s' is not a %s (it is %s%s)", name,
                 kind == LR_COLUMN_TEXT ? "string" : "number", kinds[cell->kind],
                 quoted ? "; write it without quotes" : "");
        return false;
    }
    if (kind == LR_COLUMN_NUMBER && !lr_decimal(cell->text, cell->size, &cell->number)) {
        snprintf(s->why, LR_ROW_WHY, "column '%s' is not a finite number of double precision (it is %.*s)", name,
                 (int)lr_min64(cell->size, 40), cell->text);
        return false;
    }
    return true;
}

lr_row_state lr_jsonl_row(const lr_schema *schema, const char *p, const char *end, const char **next, lr_cell *cells,
                          char *why)
{
    const char *newline = memchr(p, '\n', (size_t)(end - p));
    *next = newline != NULL ? newline + 1 : end;
    scan s = {p, newline != NULL ? newline : end, p, why};
    skip_space(&s);
    if (s.p == s.end)
        return LR_ROW_BLANK;
    const char first = *s.p;
    s.p = p;
    if (s.end - p > LR_ROW_BYTES && first != '[') { /* for a whole JSON file on one line, scan_row has better advice */
        snprintf(why, LR_ROW_WHY, "the row has %lld bytes, at most %d are allowed", (long long)(s.end - p),
                 LR_ROW_BYTES);
        return LR_ROW_BAD;
    }
    for (int c = 0; c < schema->columns; c++)
        cells[c].kind = -1;
    if (!scan_row(&s, schema, cells))
        return LR_ROW_BAD;
    for (int c = 0; c < schema->columns; c++)
        if (!check_cell(&s, schema->names[c], schema->kinds[c], &cells[c]))
            return LR_ROW_BAD;
    return LR_ROW_GOOD;
}

/* ---- decoding ---------------------------------------------------------------------------------------------------- */
typedef struct sink {
    char *buf;
    int64_t size, cap;
} sink;

static void put(sink *out, const char *bytes, int64_t size)
{
    if (out->size < out->cap)
        memcpy(out->buf + out->size, bytes, (size_t)lr_min64(size, out->cap - out->size));
    out->size += size;
}

int64_t lr_jsonl_decode(const lr_cell *cell, char *buf, int64_t cap)
{
    sink out = {buf, 0, cap};
    const char *p = cell->text, *end = p + cell->size;
    while (cell->escaped && p < end) {
        const char *slash = memchr(p, '\\', (size_t)(end - p));
        if (slash == NULL)
            break;
        put(&out, p, slash - p);
        p = slash + 2;
        switch (slash[1]) {
        case 'b':
            put(&out, "\b", 1);
            break;
        case 'f':
            put(&out, "\f", 1);
            break;
        case 'n':
            put(&out, "\n", 1);
            break;
        case 'r':
            put(&out, "\r", 1);
            break;
        case 't':
            put(&out, "\t", 1);
            break;
        case 'u': {
            int code = lr_hex4(p);
            p += 4;
            if (code >= 0xD800 && code <= 0xDBFF) { /* the scanner has checked the other half */
                code = 0x10000 + ((code - 0xD800) << 10) + (lr_hex4(p + 2) - 0xDC00);
                p += 6;
            }
            char character[4];
            put(&out, character, lr_utf8_put(character, (uint32_t)code) - character);
            break;
        }
        default: /* the character itself: quote, backslash, slash */
            put(&out, slash + 1, 1);
        }
    }
    put(&out, p, end - p);
    return out.size;
}
