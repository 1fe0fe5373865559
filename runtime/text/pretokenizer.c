/* pretokenizer.c: splitting normalised text into words.
 *
 * A pre-tokenizer is a chain of steps. Each step cuts its piece and hands the parts to the next one; the last hands
 * words to the model. So there are no lists of pieces, and a caller that has enough ids stops the whole chain.
 *
 * A step finds matches (by pattern, string or class of characters) and the gaps between them; its behaviour says how
 * both become parts: isolated, removed, merged with a neighbour, or joined into runs. */
#define _GNU_SOURCE /* memmem */
#include "text/text.h"
#include <string.h>

typedef enum step_kind {
    STEP_REGEX,
    STEP_STRING,
    STEP_CLASS,       /* each character of a class is a match */
    STEP_WORD_RUNS,   /* \w+ or [^\w\s]+; the rest is dropped */
    STEP_PREFIX_SPACE /* ByteLevel's add_prefix_space */
} step_kind;

typedef enum merging { ISOLATED, REMOVED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS } merging;

struct lr_pretokenizer_step {
    step_kind kind;
    merging behavior;
    bool invert; /* gaps count as matches, matches as gaps */
    int class;
    char *string;
    size_t string_size;
    lr_regex regex;
};

/* ---- loading -------------------------------------------------------------------------------------------------------- */
static lr_pretokenizer_step *add_step(lr_pretokenizer *p, step_kind kind, merging behavior)
{
    if (lr_reserve((void **)&p->steps, &p->cap, p->count + 1, sizeof p->steps[0]) != LR_OK)
        return NULL;
    lr_pretokenizer_step *s = &p->steps[p->count++];
    *s = (lr_pretokenizer_step){.kind = kind, .behavior = behavior};
    return s;
}

static int add_class(lr_pretokenizer *p, int class, merging behavior)
{
    lr_pretokenizer_step *s = add_step(p, STEP_CLASS, behavior);
    if (s == NULL)
        return LR_ENOMEM;
    s->class = class;
    return LR_OK;
}

static int load_behavior(const lr_place *at, const lr_json_node *spec, bool required, merging *out)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name = NULL;
    const int status = lr_spec_string(at, spec, "behavior", required, &name, NULL);
    if (status != LR_OK || name == NULL)
        return status;
    for (size_t i = 0; i < LR_COUNT_OF(names); i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (merging)i;
            return LR_OK;
        }
    return lr_spec_unsupported(&(lr_place){at, "behavior", 0}, "the behavior \"%.60s\" is not supported", name);
}

static int load_split(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    bool is_regex = false, invert = false;
    const char *pattern = NULL;
    size_t size = 0;
    merging how = ISOLATED;
    int status = load_behavior(at, spec, true, &how);
    if (status == LR_OK)
        status = lr_spec_bool(at, spec, "invert", true, &invert);
    if (status == LR_OK)
        status = lr_spec_pattern(at, spec, &is_regex, &pattern, &size);
    if (status != LR_OK)
        return status;
    lr_pretokenizer_step *s = add_step(p, is_regex ? STEP_REGEX : STEP_STRING, how);
    if (s == NULL)
        return LR_ENOMEM;
    s->invert = invert;
    if (is_regex)
        return lr_regex_compile(&s->regex, at, pattern, size);
    s->string = lr_strndup(pattern, size);
    s->string_size = size;
    return s->string == NULL ? LR_ENOMEM : LR_OK;
}

static int load_byte_level(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    bool prefix_space = false, use_regex = true;
    int status = lr_spec_bool(at, spec, "add_prefix_space", true, &prefix_space);
    if (status == LR_OK)
        status = lr_spec_bool(at, spec, "use_regex", false, &use_regex);
    if (status != LR_OK)
        return status;
    p->byte_level = true;
    if (prefix_space && add_step(p, STEP_PREFIX_SPACE, ISOLATED) == NULL)
        return LR_ENOMEM;
    if (!use_regex)
        return LR_OK;
    lr_pretokenizer_step *s = add_step(p, STEP_REGEX, ISOLATED);
    return s == NULL ? LR_ENOMEM : lr_regex_compile(&s->regex, at, gpt2, sizeof gpt2 - 1);
}

static int load_digits(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    bool individual = false;
    const int status = lr_spec_bool(at, spec, "individual_digits", true, &individual);
    return status == LR_OK ? add_class(p, LR_CHAR_NUMERIC, individual ? ISOLATED : CONTIGUOUS) : status;
}

static int load_one(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec, const char *type)
{
    if (p->count + 2 > LR_TEXT_STEPS) /* each may be two steps; they run within each other, on the stack */
        return lr_spec_unsupported(at, "more than %d pre-tokenizers are not supported", LR_TEXT_STEPS);
    if (p->byte_level)
        return lr_spec_unsupported(at, "the pre-tokenizer \"%.60s\" after ByteLevel is not supported", type);
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(p, at, spec);
    if (strcmp(type, "Split") == 0)
        return load_split(p, at, spec);
    if (strcmp(type, "Digits") == 0)
        return load_digits(p, at, spec);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return add_class(p, LR_CHAR_SPACE, REMOVED);
    if (strcmp(type, "Whitespace") == 0)
        return add_step(p, STEP_WORD_RUNS, ISOLATED) == NULL ? LR_ENOMEM : LR_OK;
    if (strcmp(type, "BertPreTokenizer") == 0) {
        const int status = add_class(p, LR_CHAR_SPACE, REMOVED);
        return status == LR_OK ? add_class(p, LR_CHAR_PUNCTUATION, ISOLATED) : status;
    }
    if (strcmp(type, "Punctuation") == 0) {
        merging how = ISOLATED;
        const int status = load_behavior(at, spec, false, &how);
        return status == LR_OK ? add_class(p, LR_CHAR_PUNCTUATION, how) : status;
    }
    return lr_spec_unsupported(at, "the pre-tokenizer \"%.60s\" is not supported", type);
}

int lr_pretokenizer_load(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    const char *type = NULL;
    int status = lr_spec_depth(at);
    if (status == LR_OK)
        status = lr_spec_type(at, spec, &type);
    if (status != LR_OK || strcmp(type, "Sequence") != 0)
        return status != LR_OK ? status : load_one(p, at, spec, type);
    const lr_json_node *parts = NULL;
    status = lr_spec_array(at, spec, "pretokenizers", &parts);
    const lr_place here = {at, "pretokenizers", 0};
    for (size_t i = 0; status == LR_OK && i < lr_spec_length(parts); i++)
        status = lr_pretokenizer_load(p, &(lr_place){&here, NULL, i}, lr_spec_item(parts, i));
    return status;
}

void lr_pretokenizer_free(lr_pretokenizer *p)
{
    for (size_t i = 0; i < p->count; i++) {
        lr_free(p->steps[i].string);
        lr_regex_free(&p->steps[i].regex);
    }
    lr_free(p->steps);
    *p = (lr_pretokenizer){0};
}

/* ---- from matches to parts ------------------------------------------------------------------------------------------ */
static int run_from(const lr_pretokenizer *p, size_t index, lr_encoder *e, const char *text, size_t size);

typedef struct splitter { /* one step at work on one piece */
    const lr_pretokenizer *chain;
    size_t step;
    lr_encoder *e;
    const char *text;
    size_t begin, end; /* a part that waits for what comes next */
    bool waiting, was_match;
} splitter;

static inline int hand_on(splitter *s, size_t begin, size_t end)
{
    return begin == end ? LR_OK : run_from(s->chain, s->step + 1, s->e, s->text + begin, end - begin);
}

static int hand_on_waiting(splitter *s)
{
    if (!s->waiting)
        return LR_OK;
    s->waiting = false;
    return hand_on(s, s->begin, s->end);
}

/* The next stretch of the piece, a match or a gap. */
static int stretch(splitter *s, size_t begin, size_t end, bool match)
{
    const lr_pretokenizer_step *step = &s->chain->steps[s->step];
    match = match != step->invert;
    bool join = false;
    switch (step->behavior) {
    case ISOLATED:
        return hand_on(s, begin, end);
    case REMOVED:
        return match ? LR_OK : hand_on(s, begin, end);
    case CONTIGUOUS:
        join = match == s->was_match;
        break;
    case MERGED_WITH_PREVIOUS:
        join = match && !s->was_match;
        break;
    case MERGED_WITH_NEXT: /* only a match waits for a gap */
        join = !match && s->was_match;
        break;
    }
    s->was_match = match;
    if (join && s->waiting) {
        s->end = end;
        return LR_OK;
    }
    const int status = hand_on_waiting(s);
    s->begin = begin;
    s->end = end;
    s->waiting = true;
    return status;
}

static int split_class(splitter *s, size_t size)
{
    const int class = s->chain->steps[s->step].class;
    const char *p = s->text, *const end = s->text + size;
    size_t done = 0;
    int status = LR_OK;
    while (p < end && status == LR_OK) {
        const char *at = p;
        if (!lr_char_is(lr_utf8_next(&p), class))
            continue;
        const size_t begin = (size_t)(at - s->text);
        if (begin > done)
            status = stretch(s, done, begin, false);
        done = (size_t)(p - s->text);
        if (status == LR_OK)
            status = stretch(s, begin, done, true);
    }
    return status == LR_OK && done < size ? stretch(s, done, size, false) : status;
}

static int split_string(splitter *s, size_t size)
{
    const lr_pretokenizer_step *step = &s->chain->steps[s->step];
    size_t done = 0;
    int status = LR_OK;
    while (status == LR_OK) {
        const char *at = memmem(s->text + done, size - done, step->string, step->string_size);
        if (at == NULL)
            break;
        const size_t begin = (size_t)(at - s->text);
        if (begin > done)
            status = stretch(s, done, begin, false);
        done = begin + step->string_size;
        if (status == LR_OK)
            status = stretch(s, begin, done, true);
    }
    return status == LR_OK && done < size ? stretch(s, done, size, false) : status;
}

static int split_regex(splitter *s, size_t size)
{
    lr_regex_search search;
    size_t done = 0, begin, end;
    int status = LR_OK;
    lr_regex_start(&search, &s->chain->steps[s->step].regex, s->text, size);
    while (status == LR_OK) {
        const int found = lr_regex_next(&search, &s->e->matcher, &begin, &end);
        if (found < 0)
            return found;
        if (found == 0)
            break;
        if (begin > done)
            status = stretch(s, done, begin, false);
        if (status == LR_OK)
            status = stretch(s, begin, end, true);
        done = end;
    }
    return status == LR_OK && done < size ? stretch(s, done, size, false) : status;
}

static int split_word_runs(splitter *s, size_t size)
{
    const char *p = s->text, *const end = s->text + size;
    int status = LR_OK;
    while (p < end && status == LR_OK) {
        const char *begin = p, *stop = p;
        const int first = lr_char_classes[lr_utf8_next(&p)] & (LR_CHAR_WORD | LR_CHAR_SPACE);
        for (stop = p; p < end; stop = p)
            if ((lr_char_classes[lr_utf8_next(&p)] & (LR_CHAR_WORD | LR_CHAR_SPACE)) != first)
                break;
        p = stop;
        if (!(first & LR_CHAR_SPACE))
            status = hand_on(s, (size_t)(begin - s->text), (size_t)(stop - s->text));
    }
    return status;
}

static int run_prefix_space(splitter *s, size_t size)
{
    if (*s->text == ' ')
        return hand_on(s, 0, size);
    lr_string *out = &s->e->spaced;
    out->size = 0;
    int status = lr_string_append(out, " ", 1);
    if (status == LR_OK)
        status = lr_string_append(out, s->text, size);
    s->text = out->data;
    return status == LR_OK ? hand_on(s, 0, size + 1) : status;
}

static int run_from(const lr_pretokenizer *p, size_t index, lr_encoder *e, const char *text, size_t size)
{
    if (index == p->count)
        return lr_encoder_word(e, text, size);
    splitter s = {p, index, e, text, 0, 0, false, false};
    int status = LR_OK;
    switch (p->steps[index].kind) {
    case STEP_REGEX:
        status = split_regex(&s, size);
        break;
    case STEP_STRING:
        status = split_string(&s, size);
        break;
    case STEP_CLASS:
        status = split_class(&s, size);
        break;
    case STEP_WORD_RUNS:
        status = split_word_runs(&s, size);
        break;
    case STEP_PREFIX_SPACE:
        return run_prefix_space(&s, size);
    }
    return status == LR_OK ? hand_on_waiting(&s) : status;
}

int lr_pretokenizer_run(const lr_pretokenizer *p, lr_encoder *e, const char *text, size_t size)
{
    return run_from(p, 0, e, text, size);
}
