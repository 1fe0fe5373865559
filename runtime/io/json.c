/* json.c: a JSON reader. It is strict (RFC 8259), or reads as Python's json does, which is how transformers reads a model's
 * settings.
 *
 * Why it is not a library: here every allocation may fail, and jansson 2.14 writes past the end of its buffer when one of its
 * lexer's allocations fails. It also refuses integers beyond 64 bits, which tokenizer_config.json has ("model_max_length":
 * 1000000000000000019884624838656).
 *
 * A document is one arena: blocks that hold strings, arrays and members, freed together. Values are parsed onto a stack. When a
 * container closes, its elements move from the stack to the arena, where they are side by side and never move again.
 *
 * Invariants
 *   - Strings in the document are valid UTF-8 and NUL-terminated; only values, not keys, may hold further NULs.
 *   - Members keep the order of the text. A key that occurs twice is refused, since one of its values would be lost silently. When
 *     reading as Python does, the last value counts, as there.
 *   - Nesting is bounded, so that hostile input cannot exhaust the C stack. */
#define _GNU_SOURCE /* strtod_l */
#include "io/json.h"
#include "core/hash.h"
#include "core/utf8.h"
#include "io/file.h"
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 1000, FEW_MEMBERS = 16, MIN_BLOCK = 1 << 10, MAX_BLOCK = 1 << 20 };

typedef struct member member;

struct lr_json_node {
    int32_t kind, integer;
    int64_t length;
    union {
        double number;
        const char *string;
        const lr_json_node *items;
        const member *members;
    };
};

struct member {
    const char *key; /* NULL while it is an array's element on the stack */
    size_t at;       /* where the key begins in the text, for messages */
    lr_json_node value;
};

typedef struct block {
    struct block *next;
    size_t used, size;
    char data[];
} block;

struct lr_json {
    block *blocks; /* newest first */
    lr_json_node root;
};

typedef struct parser {
    const char *text, *name;
    size_t at, size;
    bool python; /* as Python's json reads */
    lr_json *doc;
    void *stack; /* of member */
    size_t height, capacity;
} parser;

/* ---- the arena ------------------------------------------------------------------------------------------------------ */
/* Room for `size` bytes, 8-byte aligned. It is taken only once arena_keep is called. */
static void *arena_room(lr_json *doc, size_t size)
{
    block *b = doc->blocks;
    if (b == NULL || b->size - b->used < size) {
        size_t grown = b == NULL ? MIN_BLOCK : b->size < MAX_BLOCK ? 2 * b->size : MAX_BLOCK;
        if (grown < size)
            grown = size;
        block *fresh = lr_alloc(sizeof *fresh + grown);
        if (fresh == NULL)
            return NULL;
        *fresh = (block){.next = b, .size = grown};
        doc->blocks = b = fresh;
    }
    return b->data + b->used;
}

static void arena_keep(lr_json *doc, size_t size)
{
    block *b = doc->blocks;
    const size_t rounded = (size + 7) & ~(size_t)7;
    b->used = rounded < b->size - b->used ? b->used + rounded : b->size;
}

/* ---- errors --------------------------------------------------------------------------------------------------------- */
static int fail_at(const parser *p, size_t at, const char *what)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at && i < p->size; i++) {
        column = p->text[i] == '\n' ? 1 : column + 1;
        line += p->text[i] == '\n';
    }
    return lr_fail(LR_EFORMAT, "%s:%zu:%zu: not valid JSON: %s", p->name, line, column, what);
}

/* The error for text at p->at that cannot be there. */
static int unexpected(const parser *p, const char *expected)
{
    char what[160];
    if (p->at >= p->size)
        snprintf(what, sizeof what, "the text ends where %s is expected", expected);
    else if ((unsigned char)p->text[p->at] > ' ' && (unsigned char)p->text[p->at] < 127)
        snprintf(what, sizeof what, "'%c' where %s is expected", p->text[p->at], expected);
    else
        snprintf(what, sizeof what, "byte 0x%02x where %s is expected", (unsigned char)p->text[p->at], expected);
    return fail_at(p, p->at, what);
}

/* ---- strings -------------------------------------------------------------------------------------------------------- */
/* The escape sequence after a backslash. p->at is just after the backslash, and moves past the sequence. */
static int parse_escape(parser *p, char **out)
{
    static const char FROM[] = "\"\\/bfnrt", TO[] = "\"\\/\b\f\n\r\t";
    const char c = p->at < p->size ? p->text[p->at] : 0;
    const char *simple = c == 0 ? NULL : strchr(FROM, c);
    if (simple != NULL) {
        *(*out)++ = TO[simple - FROM];
        p->at++;
        return LR_OK;
    }
    int code = c == 'u' && p->size - p->at >= 5 ? lr_hex4(p->text + p->at + 1) : -1;
    if (code < 0)
        return fail_at(p, p->at, "a backslash that begins no escape sequence");
    p->at += 5;
    if (code >= 0xd800 && code < 0xdc00 && p->size - p->at >= 6 && memcmp(p->text + p->at, "\\u", 2) == 0) {
        const int low = lr_hex4(p->text + p->at + 2);
        if (low >= 0xdc00 && low < 0xe000) {
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            p->at += 6;
        }
    }
    if (code >= 0xd800 && code < 0xe000)
        return fail_at(p, p->at - 6, "half of a surrogate pair");
    *out = lr_utf8_put(*out, (uint32_t)code);
    return LR_OK;
}

/* The string after the quote at p->at - 1. No escape is shorter than the character it stands for, so the length of the text is
 * enough room. */
static int parse_string(parser *p, const char **string, size_t *length)
{
    const size_t start = p->at;
    size_t end = start;
    while (end < p->size && p->text[end] != '"')
        end += p->text[end] == '\\' ? 2 : 1;
    if (end >= p->size)
        return fail_at(p, start - 1, "a string without its closing quote");
    char *const begin = arena_room(p->doc, end - start + 1), *out = begin;
    if (begin == NULL)
        return LR_ENOMEM;
    while (p->at < end) {
        const char c = p->text[p->at];
        if (c == '\\') {
            p->at++;
            const int status = parse_escape(p, &out);
            if (status != LR_OK)
                return status;
            continue;
        }
        if ((unsigned char)c < ' ')
            return fail_at(p, p->at, "a control character in a string; write it as \\u00XX");
        const size_t n = (size_t)lr_utf8_sequence(p->text + p->at, p->text + end);
        if (n == 0)
            return fail_at(p, p->at, "bytes that are not UTF-8");
        memcpy(out, p->text + p->at, n);
        out += n;
        p->at += n;
    }
    *out = 0;
    p->at = end + 1;
    *string = begin;
    *length = (size_t)(out - begin);
    arena_keep(p->doc, *length + 1);
    return LR_OK;
}

/* ---- numbers -------------------------------------------------------------------------------------------------------- */
static size_t skip_digits(const parser *p, size_t at)
{
    while (at < p->size && p->text[at] >= '0' && p->text[at] <= '9')
        at++;
    return at;
}

double lr_decimal_value(const char *text)
{
    /* glibc's "C" locale is a constant: nothing is allocated, and this cannot fail. */
    const locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    const double value = strtod_l(text, NULL, c);
    freelocale(c);
    return value;
}

static int convert_number(parser *p, size_t start, size_t end, double *out)
{
    char *copy = arena_room(p->doc, end - start + 1); /* not kept: scratch for the NUL after the number */
    if (copy == NULL)
        return LR_ENOMEM;
    memcpy(copy, p->text + start, end - start);
    copy[end - start] = 0;
    *out = lr_decimal_value(copy);
    if (!p->python && (*out > 1.7976931348623157e308 || *out < -1.7976931348623157e308))
        return fail_at(p, start, "a number beyond 1.8e308");
    return LR_OK;
}

static int parse_number(parser *p, lr_json_node *out)
{
    const size_t start = p->at;
    const bool negative = p->text[start] == '-';
    const size_t first = start + negative;
    size_t end = skip_digits(p, first);
    p->at = first; /* for messages */
    if (end == first)
        return unexpected(p, "a digit");
    if (p->text[first] == '0' && end > first + 1)
        return fail_at(p, first, "a number that begins with 0");
    const size_t whole = end;
    if (end < p->size && p->text[end] == '.') {
        p->at = end + 1;
        end = skip_digits(p, p->at);
        if (end == p->at)
            return unexpected(p, "a digit");
    }
    if (end < p->size && (p->text[end] == 'e' || p->text[end] == 'E')) {
        p->at = end + 1;
        if (p->at < p->size && (p->text[p->at] == '+' || p->text[p->at] == '-'))
            p->at++;
        end = skip_digits(p, p->at);
        if (end == p->at)
            return unexpected(p, "a digit");
    }
    p->at = end;
    *out = (lr_json_node){.kind = LR_JSON_NUMBER, .integer = whole == end};
    if (whole != end || whole - first > 18)
        return convert_number(p, start, end, &out->number);
    int64_t n = 0;
    for (size_t i = first; i < whole; i++)
        n = n * 10 + (p->text[i] - '0');
    out->number = negative ? -(double)n : (double)n;
    return LR_OK;
}

/* ---- objects and arrays --------------------------------------------------------------------------------------------- */
/* The stack from base on. NULL if it was never used: adding even 0 to NULL is undefined. */
static member *top(const parser *p, size_t base)
{
    return p->stack != NULL ? (member *)p->stack + base : NULL;
}

static int push(parser *p, const member *m)
{
    const int status = lr_reserve(&p->stack, &p->capacity, p->height + 1, sizeof *m);
    if (status == LR_OK)
        ((member *)p->stack)[p->height++] = *m;
    return status;
}

static int fail_duplicate(const parser *p, const member *m)
{
    char what[160];
    snprintf(what, sizeof what, "the key '%.100s' occurs twice in one object", m->key);
    return fail_at(p, m->at, what);
}

/* Member i has the same key as member `first`, before it. */
static int meet_again(const parser *p, member *m, size_t first, size_t i)
{
    if (!p->python)
        return fail_duplicate(p, &m[i]);
    m[first].value = m[i].value;
    m[i].key = NULL;
    return LR_OK;
}

/* Close the gaps that meet_again made. */
static void drop_repeated(parser *p, size_t base)
{
    member *m = top(p, base);
    size_t kept = 0;
    for (size_t i = 0; i < p->height - base; i++)
        if (m[i].key != NULL)
            m[kept++] = m[i];
    p->height = base + kept;
}

/* Looks for a key that occurs twice among the members on the stack from base on: an error, or only one of the members stays. */
static int check_keys(parser *p, size_t base)
{
    member *m = top(p, base);
    const size_t n = p->height - base;
    if (n <= FEW_MEMBERS) {
        int status = LR_OK;
        for (size_t i = 1; i < n && status == LR_OK; i++)
            for (size_t k = 0; k < i && m[i].key != NULL && status == LR_OK; k++)
                if (m[k].key != NULL && strcmp(m[i].key, m[k].key) == 0)
                    status = meet_again(p, m, k, i);
        drop_repeated(p, base);
        return status;
    }
    size_t slots = 64;
    while (slots < 2 * n)
        slots *= 2;
    size_t *table = lr_calloc(slots, sizeof *table); /* index + 1, open addressing */
    if (table == NULL)
        return LR_ENOMEM;
    int status = LR_OK;
    for (size_t i = 0; i < n && status == LR_OK; i++) {
        size_t slot = lr_hash_more(LR_HASH_START, m[i].key, strlen(m[i].key)) & (slots - 1);
        while (table[slot] != 0 && strcmp(m[table[slot] - 1].key, m[i].key) != 0)
            slot = (slot + 1) & (slots - 1);
        if (table[slot] != 0)
            status = meet_again(p, m, table[slot] - 1, i);
        else
            table[slot] = i + 1;
    }
    lr_free(table);
    drop_repeated(p, base);
    return status;
}

/* Move the elements on the stack from base on into the arena, as the contents of `out`. */
static int close_container(parser *p, size_t base, lr_json_node *out)
{
    const size_t n = p->height - base;
    const member *m = top(p, base);
    const size_t size = n * (out->kind == LR_JSON_OBJECT ? sizeof(member) : sizeof(lr_json_node));
    void *room = arena_room(p->doc, size);
    if (room == NULL)
        return LR_ENOMEM;
    arena_keep(p->doc, size);
    if (out->kind == LR_JSON_OBJECT) {
        if (n > 0)
            memcpy(room, m, size);
        out->members = room;
    } else {
        lr_json_node *items = room;
        for (size_t i = 0; i < n; i++)
            items[i] = m[i].value;
        out->items = items;
    }
    out->length = (int64_t)n;
    p->height = base;
    return LR_OK;
}

static void skip_space(parser *p)
{
    while (p->at < p->size &&
           (p->text[p->at] == ' ' || p->text[p->at] == '\n' || p->text[p->at] == '\t' || p->text[p->at] == '\r'))
        p->at++;
}

static bool next_is(parser *p, char c)
{
    skip_space(p);
    if (p->at >= p->size || p->text[p->at] != c)
        return false;
    p->at++;
    return true;
}

static int parse_value(parser *p, lr_json_node *out, int depth);

/* A key and its colon. */
static int parse_key(parser *p, member *m)
{
    size_t length;
    if (!next_is(p, '"'))
        return unexpected(p, "a key in double quotes");
    m->at = p->at - 1;
    const int status = parse_string(p, &m->key, &length);
    if (status != LR_OK)
        return status;
    if (strlen(m->key) != length)
        return fail_at(p, m->at, "a key with a NUL in it");
    return next_is(p, ':') ? LR_OK : unexpected(p, "':'");
}

/* The elements of a container. p->at is just after its opening bracket. */
static int parse_container(parser *p, lr_json_node *out, int depth)
{
    const bool object = out->kind == LR_JSON_OBJECT;
    const char closing = object ? '}' : ']';
    const size_t base = p->height;
    if (depth >= MAX_DEPTH)
        return fail_at(p, p->at - 1, "nested more than 1000 levels deep");
    int status = LR_OK;
    bool more = !next_is(p, closing);
    while (more) {
        member m = {0};
        if (object)
            status = parse_key(p, &m);
        if (status == LR_OK)
            status = parse_value(p, &m.value, depth + 1);
        if (status == LR_OK)
            status = push(p, &m);
        if (status != LR_OK)
            return status;
        more = next_is(p, ',');
        if (!more && !next_is(p, closing))
            return unexpected(p, object ? "',' or '}'" : "',' or ']'");
    }
    if (object)
        status = check_keys(p, base);
    return status == LR_OK ? close_container(p, base, out) : status;
}

static int parse_word(parser *p, lr_json_node *out)
{
    static const struct {
        const char *word;
        int32_t kind;
    } WORDS[] = {{"null", LR_JSON_NULL}, {"true", LR_JSON_TRUE}, {"false", LR_JSON_FALSE}};
    for (size_t i = 0; i < LR_COUNT_OF(WORDS); i++) {
        const size_t n = strlen(WORDS[i].word);
        if (p->size - p->at >= n && memcmp(p->text + p->at, WORDS[i].word, n) == 0) {
            *out = (lr_json_node){.kind = WORDS[i].kind};
            p->at += n;
            return LR_OK;
        }
    }
    static const struct {
        const char *word;
        double number;
    } NUMBERS[] = {{"NaN", (double)NAN}, {"Infinity", (double)INFINITY}, {"-Infinity", -(double)INFINITY}};
    for (size_t i = 0; p->python && i < LR_COUNT_OF(NUMBERS); i++) {
        const size_t n = strlen(NUMBERS[i].word);
        if (p->size - p->at >= n && memcmp(p->text + p->at, NUMBERS[i].word, n) == 0) {
            *out = (lr_json_node){.kind = LR_JSON_NUMBER, .number = NUMBERS[i].number};
            p->at += n;
            return LR_OK;
        }
    }
    return unexpected(p, "a value");
}

static int parse_value(parser *p, lr_json_node *out, int depth)
{
    skip_space(p);
    const char c = p->at < p->size ? p->text[p->at] : 0;
    size_t length = 0;
    switch (c) {
    case '{':
    case '[':
        p->at++;
        *out = (lr_json_node){.kind = c == '{' ? LR_JSON_OBJECT : LR_JSON_ARRAY};
        return parse_container(p, out, depth);
    case '"':
        p->at++;
        *out = (lr_json_node){.kind = LR_JSON_STRING};
        const int status = parse_string(p, &out->string, &length);
        out->length = (int64_t)length;
        return status;
    case '-':
        if (p->python && p->at + 1 < p->size && p->text[p->at + 1] == 'I')
            return parse_word(p, out);
        return parse_number(p, out);
    case '0' ... '9':
        return parse_number(p, out);
    default:
        return parse_word(p, out);
    }
}

/* Files that are no JSON, for reasons that users meet. */
static int refuse_other(const parser *p)
{
    if (p->size == 0)
        return lr_fail(LR_EFORMAT, "%s is empty; it should hold JSON. Was its download cut off?", p->name);
    if (p->size >= 3 && memcmp(p->text, "\xef\xbb\xbf", 3) == 0)
        return lr_fail(LR_EFORMAT, "%s: not valid JSON: it begins with a byte order mark; save it as UTF-8 without BOM",
                       p->name);
    return lr_file_refuse_pointer(p->name, p->text, p->size);
}

static int parse(lr_json **out, const char *text, int64_t size, const char *name, bool python)
{
    if (size < 0)
        return lr_fail(LR_EINVAL, "%s: a JSON text of %lld bytes", name, (long long)size);
    parser p = {.text = text, .name = name, .size = (size_t)size, .python = python};
    int status = refuse_other(&p);
    if (status != LR_OK)
        return status;
    lr_json *doc = lr_calloc(1, sizeof *doc);
    if (doc == NULL)
        return LR_ENOMEM;
    p.doc = doc;
    status = parse_value(&p, &doc->root, 0);
    skip_space(&p);
    if (status == LR_OK && p.at < p.size)
        status = unexpected(&p, "the end");
    lr_free(p.stack);
    if (status != LR_OK) {
        lr_json_free(doc);
        return status;
    }
    *out = doc;
    return LR_OK;
}

int lr_json_parse(lr_json **out, const char *text, int64_t size, const char *name)
{
    return parse(out, text, size, name, false);
}

int lr_json_parse_python(lr_json **out, const char *text, int64_t size, const char *name)
{
    return parse(out, text, size, name, true);
}

void lr_json_free(lr_json *doc)
{
    if (doc == NULL)
        return;
    for (block *b = doc->blocks; b != NULL;) {
        block *next = b->next;
        lr_free(b);
        b = next;
    }
    lr_free(doc);
}

/* ---- looking at values ---------------------------------------------------------------------------------------------- */
const lr_json_node *lr_json_root(const lr_json *doc)
{
    return &doc->root;
}

void lr_json_value_of(const lr_json_node *node, lr_json_value *out)
{
    *out = (lr_json_value){.kind = node->kind, .integer = node->integer, .length = node->length};
    if (node->kind == LR_JSON_NUMBER)
        out->number = node->number;
    if (node->kind == LR_JSON_STRING)
        out->string = node->string;
}

const lr_json_node *lr_json_item(const lr_json_node *array, int64_t index)
{
    const bool inside = array->kind == LR_JSON_ARRAY && index >= 0 && index < array->length;
    return inside ? &array->items[index] : NULL;
}

const lr_json_node *lr_json_get(const lr_json_node *object, const char *key)
{
    if (object->kind == LR_JSON_OBJECT)
        for (int64_t i = 0; i < object->length; i++)
            if (strcmp(object->members[i].key, key) == 0)
                return &object->members[i].value;
    return NULL;
}

const lr_json_node *lr_json_member(const lr_json_node *object, int64_t index, const char **key)
{
    *key = object->members[index].key;
    return &object->members[index].value;
}

int lr_json_members(const lr_json_node *object, const char **keys, const lr_json_node **values)
{
    if (object->kind != LR_JSON_OBJECT)
        return lr_fail(LR_EINVAL, "this JSON value is no object");
    for (int64_t i = 0; i < object->length; i++) {
        keys[i] = object->members[i].key;
        values[i] = &object->members[i].value;
    }
    return LR_OK;
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */
char *lr_json_quote(const char *text, size_t size, int *status)
{
    char *quoted = lr_alloc(6 * size + 3), *out = quoted; /* a control character becomes six */
    if (quoted == NULL) {
        *status = LR_ENOMEM;
        return NULL;
    }
    *out++ = '"';
    for (size_t i = 0; i < size;) {
        static const char FROM[] = "\"\\\b\f\n\r\t", TO[] = "\"\\bfnrt";
        const char *simple = text[i] == 0 ? NULL : strchr(FROM, text[i]);
        const size_t n = (size_t)lr_utf8_sequence(text + i, text + size);
        if (n == 0) {
            *status = lr_fail(LR_EINVAL, "'%.100s' is not UTF-8 at byte %zu", text, i + 1);
            lr_free(quoted);
            return NULL;
        }
        if (simple != NULL) {
            *out++ = '\\';
            *out++ = TO[simple - FROM];
        } else if ((unsigned char)text[i] < ' ') {
            out += snprintf(out, 7, "\\u%04x", (unsigned char)text[i]);
        } else {
            memcpy(out, text + i, n);
            out += n;
        }
        i += n;
    }
    *out++ = '"';
    *out = 0;
    return quoted;
}
