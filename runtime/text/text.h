/* text.h: the parts of a tokenizer, for runtime/text only.
 *
 * A tokenizer.json describes a pipeline: added tokens are cut out of the raw text, the rest is normalised, normalised added tokens
 * are cut out, pre-tokenizers split the rest into words, a word model turns each word into ids, and the post-processor puts special
 * tokens around them. From the bottom up:
 *   unicode.h            UTF-8, character classes, normal forms
 *   spec.c               reads members of tokenizer.json; its errors name the place
 *   vocab.c              token <-> id
 *   pattern.c, regex.c   regular expressions
 *   normalizer.c         the normalizers of a file; normalizer_steps.c has what each kind does
 *   pretokenizer.c       the pre-tokenizers of a file; pretokenizer_steps.c has how each cuts the text
 *   bpe.c, wordpiece.c   word models
 *   postprocessor.c      special tokens around the text
 *   added.c              added tokens
 *   encoder.c            runs the pipeline for one thread, with a cache of words
 *   tokenizer.c          the public functions
 *
 * To add a normalizer, a pre-tokenizer, a post-processor or a word model, write a constant that describes it (lr_normalizer_kind,
 * lr_pretokenizer_kind, lr_postprocessor_kind, lr_word_model), in a file of its own if it is long, and name it in the table
 * `kinds` of normalizer.c, pretokenizer.c, postprocessor.c or tokenizer.c.
 *
 * Invariants
 *   - After loading, every part is constant. What encoding changes is in an lr_encoder, used by one thread at a time.
 *   - A _load function fills a part that is all zero; _free takes a part that is all zero, loaded or half loaded.
 *   - Functions that pass words on return LR_OK, a negative status, or LR_STOP when the limit on ids is reached.
 *   - A word is never empty. */
#ifndef LR_TEXT_TEXT_H
#define LR_TEXT_TEXT_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/core.h"
#include "core/hash.h"
#include "io/json.h"
#include "text/unicode.h"
#include <pcre2.h>

enum { LR_STOP = 1 };
enum { LR_TOKEN_ID_LIMIT = 1 << 24 }; /* every id is below: a damaged file must not ask for gigabytes */
/* Limits that no tokenizer in use comes near. Without them a hostile file could exhaust the stack, the memory or the user's
 * patience. */
enum {
    LR_TEXT_STEPS = 64,           /* normalizers, and pre-tokenizers, in a row */
    LR_TEXT_DEPTH = 16,           /* Sequences within each other */
    LR_TEXT_SPECIAL = 256,        /* ids around a text, on either side */
    LR_TEXT_TOKEN_BYTES = 4096,   /* of a token of the vocabulary */
    LR_TEXT_ADDED_BYTES = 512,    /* of an added token */
    LR_TEXT_PATTERN_BYTES = 4096, /* of a regular expression */
    LR_TEXT_GROWTH = 64           /* normalizers may make a text this many times longer; NFKC needs 11 at worst */
};

typedef struct lr_encoder lr_encoder;
typedef struct lr_encoder_pool lr_encoder_pool;

/* ---- spec.c: reading tokenizer.json with errors that name the place ------------------------------------------------- */
typedef struct lr_place { /* where a value stands in a file: a chain of keys and indices up to the file */
    const struct lr_place *up;
    const char *key; /* NULL: `index` is used instead. At the top: the file's name */
    size_t index;
} lr_place;
int lr_spec_bad(const lr_place *at, const char *fmt, ...) LR_PRINTF(2, 3);         /* LR_EFORMAT "file: place: ..." */
int lr_spec_unsupported(const lr_place *at, const char *fmt, ...) LR_PRINTF(2, 3); /* LR_EUNSUPPORTED, same form */
/* Values. A node that is NULL stands for a missing value, and is read as null, without parts. */
lr_json_value lr_spec_value(const lr_json_node *node);
size_t lr_spec_length(const lr_json_node *node); /* elements, members, bytes of a string */
const lr_json_node *lr_spec_item(const lr_json_node *array, size_t index);
const lr_json_node *lr_spec_find(const lr_json_node *object, const char *key); /* NULL for null, too */
int lr_spec_id(const lr_place *at, const lr_json_node *node, int32_t *id);     /* the value is a token id */
static const int64_t LR_SPEC_LARGEST = (int64_t)1 << 53; /* a larger JSON number may not be an exact integer */
/* Members of an object. A missing one is an error if `required`; otherwise a missing one or null leaves *out as it is. */
int lr_spec_bool(const lr_place *at, const lr_json_node *object, const char *key, bool required, bool *out);
int lr_spec_integer(const lr_place *at, const lr_json_node *object, const char *key, bool required, int64_t low,
                    int64_t high, int64_t *out);
int lr_spec_string(const lr_place *at, const lr_json_node *object, const char *key, bool required, const char **out,
                   size_t *size);
int lr_spec_array(const lr_place *at, const lr_json_node *object, const char *key, const lr_json_node **out);
int lr_spec_object(const lr_place *at, const lr_json_node *object, const char *key, const lr_json_node **out);
/* What kind a part is. Every description of a kind begins with this. In files of tokenizers' first releases some parts have no
 * "type": such a part is of the kind whose keys it has. */
typedef struct lr_spec_kind {
    const char *type; /* its "type" in tokenizer.json */
    const char *keys[4];
    bool refused; /* not supported, and in the table only so that the error names it */
} lr_spec_kind;
/* The kind of a part: the one in the table with its type or, if it has no type, the first one all of whose keys it has.
 * LR_EUNSUPPORTED if there is none; `what`, such as "normalizer", goes into that message. */
int lr_spec_kind_of(const lr_place *at, const lr_json_node *object, const lr_spec_kind *const *table, size_t count,
                    const char *what, const lr_spec_kind **out);
/* Calls load(whole, ...) for each element of an array, as in a Sequence. Stops at the first failure. */
int lr_spec_each(const lr_place *at, const lr_json_node *object, const char *key,
                 int (*load)(void *whole, const lr_place *at, const lr_json_node *spec), void *whole);
int lr_spec_depth(const lr_place *at); /* LR_EUNSUPPORTED: Sequences are nested too deep */
/* "file: at normalizer[3]", for the caller to free. NULL: LR_ENOMEM. */
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
    int64_t *by_id; /* id -> offset in pool; -1: no token */
    size_t id_count, id_cap;
    size_t longest; /* bytes of the longest token */
} lr_vocab;
int lr_vocab_reserve(lr_vocab *v, size_t tokens);
int lr_vocab_put(lr_vocab *v, const char *token, size_t size, int32_t id); /* replaces the id of a known token */
int32_t lr_vocab_get(const lr_vocab *v, const char *token, size_t size);   /* -1: unknown */
/* The id of the token that is prefix followed by rest. hash is that of the two in a row (core/hash.h). */
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
    char *place; /* where tokenizer.json has it, for errors */
} lr_regex;
/* The pattern in PCRE2's syntax, for texts of ASCII alone or for any text. LR_EUNSUPPORTED names what has no equivalent there. */
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

/* ---- working memory: what a thread changes while it encodes --------------------------------------------------------- */
typedef struct lr_ids { /* word models append to it */
    int32_t *data;
    size_t count, cap;
} lr_ids;
static inline int lr_ids_reserve(lr_ids *ids, size_t more)
{
    return lr_reserve((void **)&ids->data, &ids->cap, ids->count + more, sizeof ids->data[0]);
}
static inline int lr_ids_put(lr_ids *ids, int32_t id)
{
    const int status = lr_ids_reserve(ids, 1);
    if (status == LR_OK)
        ids->data[ids->count++] = id;
    return status;
}
typedef struct lr_scratch { /* two buffers, in bytes, that a word model may use during one word */
    void *data[2];
    size_t cap[2];
} lr_scratch;
static inline int lr_scratch_reserve(lr_scratch *w, int which, size_t count, size_t size)
{
    if (count > SIZE_MAX / size)
        return lr_fail(LR_ENOMEM, "an array of %zu elements of %zu bytes is too large", count, size);
    return lr_reserve(&w->data[which], &w->cap[which], count * size, 1);
}
typedef struct lr_text_work { /* for normalizers and pre-tokenizers */
    lr_string text[2];        /* normalizers write to one and read from the other */
    lr_string spaced;         /* a piece with a space put before it */
    lr_code_points code_points;
    lr_matcher matcher;
} lr_text_work;

/* ---- normalizer.c --------------------------------------------------------------------------------------------------- */
typedef struct lr_normalizer_step lr_normalizer_step;
typedef struct lr_normalizer {
    lr_normalizer_step *steps; /* Sequences are flattened */
    size_t count, cap;
    char *place; /* where tokenizer.json has it, for errors; NULL: there is none */
} lr_normalizer;
int lr_normalizer_load(lr_normalizer *n, const lr_place *at, const lr_json_node *spec);
void lr_normalizer_free(lr_normalizer *n);
/* *text and *size become the normalised text, which is in `work` or, if nothing changed, where it was. */
int lr_normalizer_run(const lr_normalizer *n, lr_text_work *work, const char **text, size_t *size);

/* ---- normalizer_steps.c: what each kind of normalizer does ---------------------------------------------------------- */
typedef struct lr_passage { /* the text on its way through the steps */
    lr_text_work *work;
    const char *text;
    size_t size;
    int next; /* the buffer of work->text that the next step writes to */
    size_t original;
    const char *place;
} lr_passage;
lr_string *lr_passage_output(lr_passage *p); /* the buffer that a step writes to, emptied */
/* After writing to it: what it holds becomes the text, unless status is an error. Returns status. */
int lr_passage_written(lr_passage *p, int status);
/* LR_EUNSUPPORTED: `size` is too many bytes for a text that began as long as this one. */
int lr_passage_check_growth(const lr_passage *p, size_t size);
typedef struct lr_normalizer_kind {
    lr_spec_kind kind;
    size_t size;                                                               /* bytes of its settings */
    int (*load)(void *settings, const lr_place *at, const lr_json_node *spec); /* NULL: it has no settings */
    void (*free)(void *settings);                                              /* NULL: they hold no memory */
    int (*run)(const void *settings, lr_passage *p);
} lr_normalizer_kind;
extern const lr_normalizer_kind lr_normalizer_nfc, lr_normalizer_nfd, lr_normalizer_nfkc, lr_normalizer_nfkd,
    lr_normalizer_lowercase, lr_normalizer_strip_accents, lr_normalizer_bert, lr_normalizer_bert_short,
    lr_normalizer_strip, lr_normalizer_replace, lr_normalizer_prepend;

/* ---- pretokenizer.c ------------------------------------------------------------------------------------------------- */
typedef struct lr_word_sink { /* takes the words, one after the other */
    int (*word)(void *to, const char *word, size_t size);
    void *to;
} lr_word_sink;
typedef struct lr_pretokenizer_step lr_pretokenizer_step;
typedef struct lr_pretokenizer {
    lr_pretokenizer_step *steps;
    size_t count, cap;
    bool byte_level; /* the word model reads words as bytes */
} lr_pretokenizer;
typedef struct lr_pretokenizer_kind {
    lr_spec_kind kind;
    int (*load)(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec); /* adds at most two steps */
} lr_pretokenizer_kind;
int lr_pretokenizer_load(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec);
void lr_pretokenizer_free(lr_pretokenizer *p);

/* ---- pretokenizer_steps.c: how a step cuts its piece of text -------------------------------------------------------- */
/* What becomes of a match: a word of its own, nothing, a part of the word before it or after it, or one word with its neighbours
 * of the same sort. */
typedef enum lr_behavior {
    LR_ISOLATED,
    LR_REMOVED,
    LR_MERGED_WITH_PREVIOUS,
    LR_MERGED_WITH_NEXT,
    LR_CONTIGUOUS
} lr_behavior;
typedef struct lr_split lr_split;
struct lr_pretokenizer_step {
    int (*run)(lr_split *s, size_t size);
    lr_behavior behavior;
    bool invert; /* gaps count as matches, matches as gaps */
    int class;
    char *string;
    size_t string_size;
    lr_regex regex;
};
struct lr_split { /* one step at work on one piece */
    const lr_pretokenizer *chain;
    size_t step;
    lr_text_work *work;
    const lr_word_sink *sink;
    const char *text;
    size_t begin, end; /* a part that waits for what comes next */
    bool waiting, was_match;
};
/* Appends a step; the caller sets what else it needs. NULL: LR_ENOMEM. */
lr_pretokenizer_step *lr_pretokenizer_add(lr_pretokenizer *p, int (*run)(lr_split *s, size_t size),
                                          lr_behavior behavior);
int lr_split_stretch(lr_split *s, size_t begin, size_t end,
                     bool match); /* the next part of the piece, a match or a gap */
int lr_split_regex(lr_split *s, size_t size);
int lr_split_string(lr_split *s, size_t size);
int lr_split_class(lr_split *s, size_t size);        /* each character of a class is a match */
int lr_split_word_runs(lr_split *s, size_t size);    /* \w+ and [^\w\s]+ are words, the rest is dropped */
int lr_split_prefix_space(lr_split *s, size_t size); /* puts a space before the piece if it does not begin with one */
/* Gives each word of the text to the sink. */
int lr_pretokenizer_run(const lr_pretokenizer *p, lr_text_work *work, const lr_word_sink *sink, const char *text,
                        size_t size);

/* ---- bpe.c, wordpiece.c: word models -------------------------------------------------------------------------------- */
typedef struct lr_word_model {
    lr_spec_kind kind;
    bool byte_level; /* needs the pre-tokenizer ByteLevel; the others do not work with it */
    size_t size;     /* bytes of the model in memory */
    /* Reads the model and, into v, its vocabulary. */
    int (*load)(void *model, lr_vocab *v, const lr_place *at, const lr_json_node *spec);
    void (*free)(void *model);
    /* Appends the ids of one word. */
    int (*word)(const void *model, const lr_vocab *v, lr_scratch *work, lr_ids *ids, const char *word, size_t size);
} lr_word_model;
extern const lr_word_model lr_bpe, lr_wordpiece;

/* ---- added.c: added tokens ------------------------------------------------------------------------------------------ */
typedef struct lr_added_token {
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
} lr_added_token;
typedef struct lr_trie_node {
    int32_t child, sibling; /* 0: none */
    int32_t token;          /* index into lr_added.tokens; -1: no token ends here */
    unsigned char byte;
} lr_trie_node;
typedef struct lr_trie {
    lr_trie_node *nodes; /* [0] is unused */
    size_t count, cap;
    int32_t root[256];
    int only; /* the first byte of all tokens if it is the same, else -1 */
} lr_trie;
typedef struct lr_added {
    lr_added_token *tokens;
    size_t count, cap;
    lr_trie raw, normalized; /* tokens to find before and after normalisation */
    lr_vocab vocab;
    bool split_special; /* the names of special tokens in a text are ordinary text */
} lr_added;
/* list: the array at `at`. given_ids: the list's own ids count; otherwise they come from the model's vocabulary v. The normalizer
 * is for tokens that are matched in normalised text. */
int lr_added_load(lr_added *a, const lr_vocab *v, const lr_normalizer *n, lr_text_work *work, const lr_place *at,
                  const lr_json_node *list, bool given_ids);
void lr_added_free(lr_added *a);
typedef struct lr_added_search {
    const lr_added *added;
    const lr_trie *trie;
    const char *text;
    size_t size, from, done; /* text before `done` has been returned */
} lr_added_search;
void lr_added_start(lr_added_search *s, const lr_added *a, const lr_trie *trie, const char *text, size_t size);
/* The next token's id, and the text [*begin, *end) between the last token and it. After the last token the id is -1. */
int32_t lr_added_next(lr_added_search *s, size_t *begin, size_t *end);

/* ---- postprocessor.c ------------------------------------------------------------------------------------------------ */
typedef struct lr_postprocessor { /* ids before and after those of the text */
    lr_ids before, after;
} lr_postprocessor;
typedef struct lr_postprocessor_kind {
    lr_spec_kind kind;
    int (*load)(lr_postprocessor *p, const lr_place *at, const lr_json_node *spec);
} lr_postprocessor_kind;
int lr_postprocessor_load(lr_postprocessor *p, const lr_place *at, const lr_json_node *spec);
void lr_postprocessor_free(lr_postprocessor *p);

/* ---- tokenizer.c, encoder.c ----------------------------------------------------------------------------------------- */
struct lr_tokenizer {
    char *path;
    lr_vocab vocab;
    lr_added added;
    lr_normalizer normalizer;
    lr_pretokenizer pretokenizer;
    lr_postprocessor postprocessor;
    const lr_word_model *model;
    void *model_data; /* model->size bytes */
    int64_t file_max_length;
    bool truncate_left; /* a text that is too long loses its beginning */
    lr_encoder_pool *pool;
};
struct lr_encoder {
    lr_encoder *next; /* in the pool */
    const lr_tokenizer *tokenizer;
    lr_ids ids;
    size_t limit; /* only this many ids are wanted */
    lr_text_work work;
    lr_scratch scratch;
    struct lr_cached_word *cache; /* on a cache line, within cache_memory */
    void *cache_memory;
};
int lr_encoder_new(lr_encoder **out, const lr_tokenizer *t);
void lr_encoder_free(lr_encoder *e);
int lr_encoder_pool_new(lr_encoder_pool **out);
void lr_encoder_pool_free(lr_encoder_pool *p);
int lr_encoder_take(lr_encoder **out, const lr_tokenizer *t);      /* from the pool, else a new one */
void lr_encoder_give(lr_encoder *e);                               /* back to its tokenizer's pool */
int lr_encoder_text(lr_encoder *e, const char *text, size_t size); /* ids of the text, without special tokens around */

#endif
