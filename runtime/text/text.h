/* text.h: the parts of a tokenizer, for runtime/text only.
 *
 * A tokenizer.json describes a pipeline: added tokens are cut out of the raw text, the rest is normalised, normalised
 * added tokens are cut out, the rest is split into words by pre-tokenizers, the model turns each word into ids, and a
 * template puts special tokens around them. Each part has a file: its _load reads the part of tokenizer.json that
 * describes it, its _free takes zeroed or half loaded parts.
 *
 * Invariants
 *   - After loading, every part is constant. What encoding changes is in an lr_encoder, used by one thread at a time.
 *   - Functions that hand words on return LR_OK, a negative status, or LR_STOP where the limit on ids is reached.
 *   - A word handed on is never empty. */
#ifndef LR_TEXT_TEXT_H
#define LR_TEXT_TEXT_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/core.h"
#include "core/hash.h"
#include "io/json.h"
#include "text/unicode.h"
#include <pcre2.h>

enum { LR_STOP = 1 };
enum { LR_TOKEN_ID_LIMIT = 1 << 24 }; /* ids are below: a damaged file must not ask for gigabytes */
/* What no tokenizer in use comes near, and a hostile file would exhaust the stack, the memory or the user's patience with. */
enum {
    LR_TEXT_STEPS = 64,           /* normalizers, and pre-tokenizers, in a row */
    LR_TEXT_DEPTH = 16,           /* Sequences within each other */
    LR_TEXT_SPECIAL = 256,        /* ids around a text, on either side */
    LR_TEXT_TOKEN_BYTES = 4096,   /* of a token of the vocabulary */
    LR_TEXT_ADDED_BYTES = 512,    /* of an added token */
    LR_TEXT_PATTERN_BYTES = 4096, /* of a regular expression */
    LR_TEXT_GROWTH = 64           /* times that normalizers may lengthen a text; NFKC makes 11 of 1 at worst */
};

typedef struct lr_encoder lr_encoder;
typedef struct lr_encoder_pool lr_encoder_pool;

/* ---- spec.c: reading tokenizer.json with errors that name the place ------------------------------------------------- */
typedef struct lr_place { /* where a value stands: a chain of keys and indices up to the file */
    const struct lr_place *up;
    const char *key; /* NULL: index counts. At the top: the file's name */
    size_t index;
} lr_place;
int lr_spec_bad(const lr_place *at, const char *fmt, ...) LR_PRINTF(2, 3);         /* LR_EFORMAT "file: place: ..." */
int lr_spec_unsupported(const lr_place *at, const char *fmt, ...) LR_PRINTF(2, 3); /* LR_EUNSUPPORTED, same form */
/* Values; NULL, for what is not there, counts as null and has no parts. */
lr_json_value lr_spec_value(const lr_json_node *node);
size_t lr_spec_length(const lr_json_node *node); /* elements, members, bytes of a string */
const lr_json_node *lr_spec_item(const lr_json_node *array, size_t index);
const lr_json_node *lr_spec_find(const lr_json_node *object, const char *key); /* NULL for null, too */
int lr_spec_id(const lr_place *at, const lr_json_node *node, int32_t *id);     /* the value is a token id */
static const int64_t LR_SPEC_LARGEST = (int64_t)1 << 53; /* beyond, a JSON number is no exact integer */
/* Members of an object. required: missing is an error; else missing and null leave *out alone. */
int lr_spec_bool(const lr_place *at, const lr_json_node *object, const char *key, bool required, bool *out);
int lr_spec_integer(const lr_place *at, const lr_json_node *object, const char *key, bool required, int64_t low,
                    int64_t high, int64_t *out);
int lr_spec_string(const lr_place *at, const lr_json_node *object, const char *key, bool required, const char **out,
                   size_t *size);
int lr_spec_array(const lr_place *at, const lr_json_node *object, const char *key, const lr_json_node **out);
int lr_spec_object(const lr_place *at, const lr_json_node *object, const char *key, const lr_json_node **out);
int lr_spec_type(const lr_place *at, const lr_json_node *object, const char **out); /* its "type" */
/* What a part without a "type" is, by its keys, as in files of tokenizers' first releases: the first kind whose keys it has,
 * else "". */
typedef struct lr_spec_kind {
    const char *type, *keys[4];
} lr_spec_kind;
int lr_spec_type_or_keys(const lr_place *at, const lr_json_node *object, const lr_spec_kind *kinds, size_t count,
                         const char **out);
int lr_spec_depth(const lr_place *at); /* LR_EUNSUPPORTED where Sequences are nested too deep */
/* "file: at normalizer[3]", to be freed. NULL: LR_ENOMEM. */
char *lr_spec_describe(const lr_place *at);
/* One entry of {"String": ...} or {"Regex": ...}. */
int lr_spec_pattern(const lr_place *at, const lr_json_node *object, bool *is_regex, const char **text, size_t *size);

/* ---- vocab.c: token <-> id ------------------------------------------------------------------------------------------ */
typedef struct lr_vocab_slot {
    uint32_t hash, offset, size; /* the token is at pool + offset */
    int32_t id;                  /* -1: empty */
} lr_vocab_slot;
typedef struct lr_vocab {
    lr_vocab_slot *slots; /* a power of two of them, at most half used */
    size_t mask, count;
    char *pool; /* tokens, NUL-terminated */
    size_t pool_size, pool_cap;
    int64_t *by_id; /* id -> offset in pool, -1 where none */
    size_t id_count, id_cap;
    size_t longest; /* bytes of the longest token */
} lr_vocab;
int lr_vocab_reserve(lr_vocab *v, size_t tokens);
int lr_vocab_put(lr_vocab *v, const char *token, size_t size, int32_t id); /* replaces the id of a known token */
int32_t lr_vocab_get(const lr_vocab *v, const char *token, size_t size);   /* -1 where unknown */
/* The id of the token that is prefix and then rest, given the hash of both in a row (core/hash.h). */
int32_t lr_vocab_get_hashed(const lr_vocab *v, uint64_t hash, const char *prefix, size_t prefix_size, const char *rest,
                            size_t rest_size);
const char *lr_vocab_token(const lr_vocab *v, int32_t id);
int lr_vocab_load(lr_vocab *v, const lr_place *at, const lr_json_node *model);
void lr_vocab_free(lr_vocab *v);

/* ---- regex.c, pattern.c: patterns of the Oniguruma library on PCRE2 ------------------------------------------------- */
typedef struct lr_regex {
    pcre2_code *unicode; /* for any text */
    pcre2_code *ascii;   /* the same language over ASCII alone, in byte mode: several times faster */
    bool jit;
    char *place; /* in tokenizer.json, for errors */
} lr_regex;
/* The pattern in PCRE2's words, for subjects of ASCII alone or of any text. LR_EUNSUPPORTED names what has no equal
 * there. */
int lr_pattern_translate(lr_string *out, const lr_place *at, const char *pattern, size_t size, bool ascii);
int lr_regex_compile(lr_regex *re, const lr_place *at, const char *pattern, size_t size);
void lr_regex_free(lr_regex *re);
typedef struct lr_matcher { /* what PCRE2 writes to, and the JIT's stack */
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
} lr_matcher;
int lr_matcher_init(lr_matcher *m);
void lr_matcher_free(lr_matcher *m);
typedef struct lr_regex_search { /* all matches in a text, left to right */
    const lr_regex *re;
    const pcre2_code *code;
    const char *text;
    size_t size, from, last_end;
    bool any;
} lr_regex_search;
void lr_regex_start(lr_regex_search *s, const lr_regex *re, const char *text, size_t size);
int lr_regex_next(lr_regex_search *s, lr_matcher *m, size_t *begin, size_t *end); /* 1 found, 0 none, or a status */

/* ---- normalizer.c --------------------------------------------------------------------------------------------------- */
typedef struct lr_normalizer_step lr_normalizer_step;
typedef struct lr_normalizer {
    lr_normalizer_step *steps; /* Sequences are flattened */
    size_t count, cap;
} lr_normalizer;
int lr_normalizer_load(lr_normalizer *n, const lr_place *at, const lr_json_node *spec);
void lr_normalizer_free(lr_normalizer *n);
/* *text and *size become the normalised text, in one of the encoder's buffers or where it was. */
int lr_normalizer_run(const lr_normalizer *n, lr_encoder *e, const char **text, size_t *size);

/* ---- pretokenizer.c ------------------------------------------------------------------------------------------------- */
typedef struct lr_pretokenizer_step lr_pretokenizer_step;
typedef struct lr_pretokenizer {
    lr_pretokenizer_step *steps;
    size_t count, cap;
    bool byte_level; /* words are to be read as bytes */
} lr_pretokenizer;
int lr_pretokenizer_load(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec);
void lr_pretokenizer_free(lr_pretokenizer *p);
/* Calls lr_encoder_word for each word of text. */
int lr_pretokenizer_run(const lr_pretokenizer *p, lr_encoder *e, const char *text, size_t size);

/* ---- bpe.c ---------------------------------------------------------------------------------------------------------- */
typedef struct lr_merge {
    int32_t left, right; /* the pair; left -1: empty */
    int32_t rank, id;    /* lower ranks merge first; the pair becomes id */
} lr_merge;
typedef struct lr_bpe {
    lr_merge *merges; /* open addressing */
    size_t mask;
    int32_t byte_ids[256]; /* -1: the byte has no token and is dropped */
    bool ignore_merges;    /* a word that is a token is that token */
} lr_bpe;
typedef struct lr_bpe_work { /* one word's symbols, and the pairs that wait to be merged */
    struct lr_bpe_symbol *symbols;
    struct lr_bpe_candidate *heap;
    size_t symbol_cap, heap_cap;
} lr_bpe_work;
int lr_bpe_load(lr_bpe *b, const lr_vocab *v, const lr_place *at, const lr_json_node *model);
void lr_bpe_free(lr_bpe *b);
int lr_bpe_word(const lr_bpe *b, const lr_vocab *v, lr_encoder *e, const char *word, size_t size);
void lr_bpe_work_free(lr_bpe_work *w);

/* ---- wordpiece.c ---------------------------------------------------------------------------------------------------- */
typedef struct lr_wordpiece {
    char *prefix; /* of tokens that continue a word: "##" */
    size_t prefix_size;
    uint64_t prefix_hash;
    size_t longest; /* characters beyond this many bytes are in no token */
    int64_t max_chars;
    int32_t unknown;
} lr_wordpiece;
int lr_wordpiece_load(lr_wordpiece *w, const lr_vocab *v, const lr_place *at, const lr_json_node *model);
void lr_wordpiece_free(lr_wordpiece *w);
int lr_wordpiece_word(const lr_wordpiece *w, const lr_vocab *v, lr_encoder *e, const char *word, size_t size);

/* ---- added.c: added tokens ------------------------------------------------------------------------------------------ */
typedef struct lr_added_token {
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
} lr_added_token;
typedef struct lr_trie_node {
    int32_t child, sibling; /* 0: none */
    int32_t token;          /* index into lr_added.tokens, -1: none ends here */
    unsigned char byte;
} lr_trie_node;
typedef struct lr_trie {
    lr_trie_node *nodes; /* [0] is unused */
    size_t count, cap;
    int32_t root[256];
    int only; /* the one first byte that there is, or -1 */
} lr_trie;
typedef struct lr_added {
    lr_added_token *tokens;
    size_t count, cap;
    lr_trie raw, normalized; /* tokens to find before and after normalisation */
    lr_vocab vocab;
    bool split_special; /* special tokens in a text are text like any other */
} lr_added;
/* list: the array at `at`. Needs the model's vocabulary for ids, unless the list's own are right (given_ids), and the
 * normalizer for tokens that are matched normalised. */
int lr_added_load(lr_added *a, const lr_vocab *v, const lr_normalizer *n, lr_encoder *e, const lr_place *at,
                  const lr_json_node *list, bool given_ids);
void lr_added_free(lr_added *a);
typedef struct lr_added_search {
    const lr_added *added;
    const lr_trie *trie;
    const char *text;
    size_t size, from, done; /* text before `done` was handed out */
} lr_added_search;
void lr_added_start(lr_added_search *s, const lr_added *a, const lr_trie *trie, const char *text, size_t size);
/* The next token: id, and [*begin, *end) of text that stood before it; at the end of text the id is -1. */
int32_t lr_added_next(lr_added_search *s, size_t *begin, size_t *end);

/* ---- postprocessor.c ------------------------------------------------------------------------------------------------ */
typedef struct lr_postprocessor { /* ids around those of the text */
    int32_t *before, *after;
    size_t before_count, before_cap, after_count, after_cap;
} lr_postprocessor;
int lr_postprocessor_load(lr_postprocessor *p, const lr_place *at, const lr_json_node *spec);
void lr_postprocessor_free(lr_postprocessor *p);

/* ---- encoder.c: what encoding changes ------------------------------------------------------------------------------- */
struct lr_tokenizer {
    char *path;
    lr_vocab vocab;
    lr_added added;
    lr_normalizer normalizer;
    lr_pretokenizer pretokenizer;
    lr_postprocessor postprocessor;
    bool is_bpe;
    lr_bpe bpe;
    lr_wordpiece wordpiece;
    int64_t file_max_length;
    bool truncate_left; /* a text that is too long loses its beginning */
    lr_encoder_pool *pool;
};
struct lr_encoder {
    lr_encoder *next; /* in the pool */
    const lr_tokenizer *tokenizer;
    int32_t *ids;
    size_t count, cap;
    size_t limit;      /* ids beyond this many are not wanted */
    lr_string text[2]; /* normalizers write to one and read from the other */
    lr_string spaced;  /* a piece with a space put before it */
    lr_string spelled; /* a word in the byte alphabet */
    lr_code_points code_points;
    lr_bpe_work bpe;
    lr_matcher matcher;
    struct lr_cached_word *cache; /* on a cache line, within cache_memory */
    void *cache_memory;
};
int lr_encoder_new(lr_encoder **out, const lr_tokenizer *t);
void lr_encoder_free(lr_encoder *e);
int lr_encoder_pool_new(lr_encoder_pool **out);
void lr_encoder_pool_free(lr_encoder_pool *p);
int lr_encoder_take(lr_encoder **out, const lr_tokenizer *t);      /* from the pool, else a new one */
void lr_encoder_give(lr_encoder *e);                               /* back to its tokenizer's pool */
int lr_encoder_put(lr_encoder *e, int32_t id);                     /* append one */
int lr_encoder_word(lr_encoder *e, const char *word, size_t size); /* append a word's ids; LR_STOP at the limit */
int lr_encoder_text(lr_encoder *e, const char *text, size_t size); /* ids of the text, without special tokens around */

#endif
